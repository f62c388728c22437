"""Classifiers: the built-in models, and models from the user's own code."""
