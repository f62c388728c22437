"""The doctor's proof of lockstep, on scripts and on runs of the trainer."""
