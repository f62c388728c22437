"""The self-healing launcher: starts the workers of a run, and starts them again when some die."""
