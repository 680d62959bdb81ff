"""The data engine against TRL, Python compositions and its own parts: `python -m benchmarks.data`."""
