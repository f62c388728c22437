"""The process and its host: cluster, precision, signals, files and free space."""
