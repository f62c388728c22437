"""The search for good settings: many trials, each an ordinary run; imports no TensorFlow."""
