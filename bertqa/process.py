"""The id of the process that imported bertqa; runtime.py recognizes forked children by it."""

import os

IMPORTED_IN = os.getpid()
