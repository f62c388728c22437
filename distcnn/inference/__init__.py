"""Uses of a trained classifier: evaluation, prediction and plots."""
