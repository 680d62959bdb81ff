"""Policies against the tools that others use."""
