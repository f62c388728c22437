"""What a run leaves behind: its directory, checkpoints, model file and summary."""
