"""Several real processes stay in lockstep: equal weights, failures, resuming and guard rails."""
