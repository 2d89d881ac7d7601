"""What holds for all tests.

One thread, because tiny tensors only lose by sharing them out. No limit to the time of an example
of hypothesis, because the machine may have much else to do. No cache of the user's, so that what
an earlier run left there decides nothing.
"""

import os
import shutil
import tempfile

# Before torch and datasets are imported, and for the processes that tests start.
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
