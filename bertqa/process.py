"""The process that has imported bertqa: to runtime.py, any other one is a forked child of it."""

import os

IMPORTED_IN = os.getpid()
