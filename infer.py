"""Answer questions about texts: ``bertqa infer``, from a clone."""

import sys

from bertqa.commands.flags import run_script
from bertqa.commands.infer import main, parse_flags

if __name__ == "__main__":
    sys.exit(run_script(main, parse_flags(sys.argv[1:])))
