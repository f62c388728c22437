"""What an evaluation is asked for besides its scores: calibration, curves, thresholds, mistakes."""
