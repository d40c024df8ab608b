"""Mixtures of experts: rows on their way to experts, their substitutes, and which exact weights are brought for them."""
