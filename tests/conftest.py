"""Settings of all tests.

One thread, which is faster for tiny tensors. No deadline for hypothesis, because the machine may be
busy. New caches, so that no test depends on earlier runs.
"""

import os
import shutil
import tempfile

# Set before torch and datasets are imported; subprocesses inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="bertqa-tests-")
os.environ["HF_DATASETS_CACHE"] = os.environ["HF_HOME"] + "/datasets"

import torch
from hypothesis import HealthCheck, settings

CACHES = os.environ["HF_HOME"]
torch.set_num_threads(1)

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHES, ignore_errors=True)
