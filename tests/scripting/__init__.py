"""Users' own scripts, plain and in a session."""
