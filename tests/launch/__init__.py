"""The launch scripts, and the wheel that carries them. Joins cli, distribute, runtime."""
