"""Optimizers, schedules, fused updates and averaged weights."""
