"""Where weights are kept: the checkpoint they come from, and the Store they are prepared into."""
