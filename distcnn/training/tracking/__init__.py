"""Trackers: services and files that runs are compared in, besides the run directory."""
