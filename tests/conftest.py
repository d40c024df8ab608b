"""One thread for torch: the suite shares its machine, and a tiny model gains nothing from more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
