"""Trains Keras 3 image classifiers on anything from a laptop to a cluster."""

from distcnn.version import __version__

__all__ = ["__version__"]
