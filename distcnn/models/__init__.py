"""Classifiers: the built-in ones by name, and the user's own."""
