"""Answer questions about texts: ``bertqa infer``, from a clone."""

import sys

try:
    from bertqa.__main__ import main  # late: Ctrl-C is handled by now
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main(["infer", *sys.argv[1:]], "infer.py"))
