"""The id of the process that imported bertqa; runtime.py recognises forked children by it."""

import os

IMPORTED_IN = os.getpid()
