"""Fine-tune BERT for extractive question answering: ``bertqa train``, from a clone."""

import sys

from bertqa.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], "train.py"))
