"""Policy optimization against named peers: `python -m benchmarks.policy`, one module a part."""
