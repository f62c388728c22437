"""Deliberate faults: commands for long campaigns, and a short sample of each as tests.

A run must survive what happens to its process and to its files. Joins data, storage, training.
"""
