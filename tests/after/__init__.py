"""Commands and files that use a finished run: evaluation, prediction, model file, TensorBoard."""
