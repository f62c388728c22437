"""Training: the setup of a run, its step, its loop and its callbacks."""
