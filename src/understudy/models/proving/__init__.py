"""Proof before use: a small copy of a model, run in both ways."""
