"""Real hosts joined by ssh, and a real Slurm. Joins distribute, runtime, training."""
