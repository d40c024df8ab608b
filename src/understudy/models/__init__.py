"""Stock transformers models bound to streamed weights: one set of modules, a target view and a draft view."""
