"""The kernels for a GPU, in Triton. Only they import it: everything else runs where it is not installed."""
