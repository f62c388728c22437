"""Optimizers, learning-rate schedules, fused updates and the EMA of the weights."""
