"""How a trained head's worth grows: accepted tokens of a pass against the tokens that the head was trained on and against its
depth, and the best number of verified nodes against the batch. The three laws of Scylla (arXiv 2505.07858), on measured runs."""
