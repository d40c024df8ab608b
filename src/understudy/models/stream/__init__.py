"""The exact weights on their way from where they lie to the product that uses them."""
