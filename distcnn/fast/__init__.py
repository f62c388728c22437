"""The fast path: runs the user's model in its fast form, with fewer passes over memory."""

from distcnn.fast.rewrite import fast_model

__all__ = ["fast_model"]
