"""Best-of-n: sample a pool, score it once, and read off every n."""
