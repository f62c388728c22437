"""Spreading a run over devices: everything that differs between strategies, and nowhere else."""
