"""Arithmetic that stock libraries do not have: position-ordered attention, 4-bit packing, quantising, residual
decoding."""
