"""The doctor's proof of lockstep: the same few steps on one worker and on several, compared."""
