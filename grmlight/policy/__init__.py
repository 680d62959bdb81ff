"""Policies: sampling, optimization against rewards, and what keeps it honest."""
