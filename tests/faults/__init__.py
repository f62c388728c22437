"""Deliberate faults: commands for long campaigns, and a short sample of each as tests.

Joins storage, training and data: a run must survive what happens to its process and its files.
"""
