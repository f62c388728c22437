"""The same training step in other frameworks, timed in turn with distcnn's."""
