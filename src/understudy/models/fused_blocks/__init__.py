"""Decoder blocks of the draft view in fewer steps than their stock modules take."""
