"""Several real processes in lockstep: equal weights, failures, resuming and guard rails."""
