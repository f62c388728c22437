"""Spreads a run over devices; only this package knows how strategies differ."""
