"""The training step of any Keras model on several replicas: shards, losses, gradients, metrics."""
