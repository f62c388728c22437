"""The search for good settings. Joins cli and searching."""
