"""Measurements against named peers. Nothing here is shipped."""
