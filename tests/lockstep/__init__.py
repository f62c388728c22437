"""Several real processes stay in lockstep. Joins distribute, optim, runtime, storage, training."""
