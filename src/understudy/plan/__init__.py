"""Where every byte goes, and how fast that will be."""
