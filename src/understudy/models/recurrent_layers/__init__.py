"""Layers that keep a state in place of keys and values: what each kind keeps, and the modules that run it."""
