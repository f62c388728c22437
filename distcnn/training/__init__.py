"""Training: the setup of a run, its steps, its loop and its callbacks."""
