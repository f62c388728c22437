"""Classifiers: the built-in ones by name, and the user's own."""

from distcnn.models.building import build_model, load_object, returns_logits, takes_images

__all__ = ["build_model", "load_object", "returns_logits", "takes_images"]
