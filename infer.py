"""Answer questions about texts: ``bertqa infer``, from a clone."""

import sys

from bertqa.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["infer", *sys.argv[1:]], "infer.py"))
