"""Tests before training: learning rates and batches."""
