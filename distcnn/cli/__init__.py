"""Turns command lines into configurations, and results into exit codes."""
