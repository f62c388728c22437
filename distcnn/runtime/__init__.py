"""What this process runs on: its place in the cluster, number formats, signals, files."""
