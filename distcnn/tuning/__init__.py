"""Tests before training: the range of learning rates, and the largest batch."""
