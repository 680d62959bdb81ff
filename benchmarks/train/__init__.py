"""The training engine against TRL, transformers and padding: `python -m benchmarks.train`."""
