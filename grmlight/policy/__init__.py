"""Policies: optimized against a reward."""
