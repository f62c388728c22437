"""The benchmark: how fast training is, how it scales, and what limits it."""
