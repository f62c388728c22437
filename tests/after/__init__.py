"""Commands and files that use a finished run.

Joins cli, data, inference, reporting, storage, training.
"""
