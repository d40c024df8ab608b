"""A model on several devices, by blocks of outputs or in stages of layers."""
