"""Exports of a trained classifier for other runtimes, each compared with the Keras model."""
