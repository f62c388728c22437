"""Callbacks, each of which observes one aspect of a run."""
