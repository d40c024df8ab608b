"""Where the kernels for a GPU are tested: on the GPU where there is one, else on the CPU by Triton's interpreter (see conftest)."""

import torch

from tests.interpreter import quicken

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

quicken()
