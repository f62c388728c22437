"""The report on a run: one HTML file that needs nothing else, neither files nor a network."""
