"""A copy of a data set with short contexts, on which a first stage of training costs less.

python -m bertqa.shorten train.json short.json --words 60
python train.py --train_file short.json ...

Of each context stays one stretch of whole words with all answers in it, at a place drawn by chance,
so that where an answer stands says nothing, as far as the ends of the text allow. Words are what
blanks part: a text without any stays whole. Answers that are longer than the stretch, or farther
apart, stay whole as well; how many stretches are longer for their sake is printed.

An encoder learns on such stretches what a question has to do with an answer, at a fraction of the
tokens; to find the answer in a long text it must then be trained on the whole contexts. Shorter
sequences first, long ones for the rest, is how BERT itself was pretrained (Devlin et al. 2019,
appendix A.2).
"""

import argparse
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bertqa.cli import Parser, run_script
from bertqa.errors import UserError
from bertqa.files import check_new_file
from bertqa.mending import COPY_ENDINGS, save_examples
from bertqa.readers import read_examples
from bertqa.squad import Example, check_answers, check_examples


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of ``python -m bertqa.shorten``."""
    # fmt: off
    parser = Parser(__doc__ or "")
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="questions with gold, as train.py takes them")
    add("copy", type=Path, metavar="COPY", help="new file, .json or .jsonl")
    add("--words", type=int, default=60, metavar="N",
        help="keep from half of N to N words of each context, more where answers need it "
        "(default: %(default)s)")
    add("--seed", type=int, default=42, metavar="N",
        help="of how many words stay and which (default: %(default)s)")
    # fmt: on
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Read, shorten, write."""
    if flags.words < 1:
        raise UserError(f"--words {flags.words} would leave no context: give 1 or more")
    if flags.seed < 0:
        raise UserError(f"--seed {flags.seed} is not possible: give 0 or more")
    check_new_file(flags.copy, "COPY", COPY_ENDINGS)
    examples = read_examples(flags.file)
    check_examples(examples, str(flags.file))
    check_answers(examples, str(flags.file))
    short = shorten(examples, flags.words, flags.seed)
    save_examples(flags.copy, short)
    before = sum(len(example.context.split()) for example in examples)
    after = [len(example.context.split()) for example in short]
    longer = sum(count > flags.words for count in after)
    print(
        f"{len(short):,} questions; {before / len(short):.0f} words of context on the average, "
        f"now {sum(after) / len(short):.0f}"
        + f", {longer:,} of them longer than {flags.words} for the answers' sake" * bool(longer)
        + f": wrote {flags.copy}"
    )


def shorten(examples: Sequence[Example], words: int, seed: int) -> list[Example]:
    """Each example with a stretch of its context, from half of ``words`` to ``words`` long.

    The answers stay whole and stand where the new starts say; a stretch is longer than ``words``
    where they need it to be. The seed and the examples decide the result. Examples without a title
    get one for each context, so that ``split_by_article`` holds out the same ones as before.
    """
    draw = random.Random(seed)
    numbers: dict[str, int] = {}
    short = []
    for example in examples:
        number = numbers.setdefault(example.context, len(numbers))
        stretch = _shortened(example, draw.randint((words + 1) // 2, words), draw)
        short.append(replace(stretch, title=example.title or f"context {number}"))
    return short


def _shortened(example: Example, words: int, draw: random.Random) -> Example:
    """The example with about ``words`` words of its context."""
    spans = [match.span() for match in re.finditer(r"\S+", example.context)]
    answers = example.answers or ()
    starts = example.answer_starts
    ends = [start + len(text) for text, start in zip(answers, starts, strict=True)]
    # Words that share a character with an answer; without any, one word drawn by chance.
    if answers:
        touched = [i for i, (a, b) in enumerate(spans) if a < max(ends) and b > min(starts)]
    else:
        touched = [draw.randrange(len(spans))]
    first, last = touched[0], touched[-1]
    spare = max(0, words - (last - first + 1))
    room_left, room_right = first, len(spans) - 1 - last
    most_left = min(spare, room_left)
    left = draw.randint(min(most_left, max(0, spare - room_right)), most_left)
    first, last = first - left, last + min(spare - left, room_right)
    begin = min([spans[first][0], *starts])  # an answer may begin or end with blanks
    end = max([spans[last][1], *ends])
    return replace(
        example,
        context=example.context[begin:end],
        answer_starts=tuple(start - begin for start in starts),
    )


if __name__ == "__main__":
    sys.exit(run_script(main, parse_flags(sys.argv[1:])))
