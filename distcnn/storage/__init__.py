"""The files of a run: its directory, checkpoints, model file and summary."""
