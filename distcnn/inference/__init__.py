"""What is done with a trained classifier: evaluate, predict, plot."""
