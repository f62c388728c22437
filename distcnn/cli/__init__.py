"""From a command line to a configuration, and from a result to an exit code."""
