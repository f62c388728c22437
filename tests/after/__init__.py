"""Commands and files that use a finished run. Joins cli, data, inference, storage, training."""
