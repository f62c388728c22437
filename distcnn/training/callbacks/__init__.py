"""Callbacks: each observes one thing of a run."""
