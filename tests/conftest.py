"""What holds for all tests: one thread, because tiny tensors only lose by sharing them out."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes tests start

import torch

torch.set_num_threads(1)
