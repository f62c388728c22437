"""The fast path: the user's model, computed in fewer passes over memory."""

from distcnn.fast.rewrite import fast_model

__all__ = ["fast_model"]
