"""Policies: optimized against a reward, and kept from over-optimizing it."""
