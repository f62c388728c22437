"""Commands, examples, links and messages in the documentation. Joins every room."""
