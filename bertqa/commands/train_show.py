"""``bertqa train --show``: random training examples with their windows and labels."""

import argparse
import random

from bertqa.data.labels import Outcome, label_text, make_labelled_windows
from bertqa.data.text import visible
from bertqa.data.tokenization import BertTokenizer
from bertqa.model.hub import find_folder
from bertqa.settings import DataSettings, DecodingSettings, WindowSettings
from bertqa.training.data import load_data


def show(
    flags: argparse.Namespace,
    data: DataSettings,
    cutting: WindowSettings,
    decoding: DecodingSettings,
) -> None:
    """Print random examples with their windows and labels."""
    folder = find_folder(flags.model, revision=flags.revision, allow_bin=flags.allow_bin)
    tokenizer = BertTokenizer.load(folder)
    negative = decoding.version_2_with_negative
    examples, _ = load_data(data, version_2_with_negative=negative)
    chosen = random.Random(flags.seed).sample(examples, min(flags.show, len(examples)))
    windows = make_labelled_windows(chosen, tokenizer, cutting)
    for i, example in enumerate(chosen):
        for name, text in (
            ("id", example.id), ("question", example.question), ("context", example.context),
        ):  # fmt: skip
            lines = map(visible, text.split("\n"))  # keeps line breaks, escapes control characters
            print(f"{name:<10}{chr(10).join(lines)}")
        for text, start in zip(example.answers or (), example.answer_starts, strict=True):
            print(f"answer    {text!r} at {start}")
        outcome = Outcome(int(windows.outcome[i]))
        print(f"label     {outcome.name.lower().replace('_', ' ')}")
        own = windows.of_examples(i, i + 1)
        for number_of, window in enumerate(own, start=1):
            shown = windows[window]
            text = label_text(windows, window, example.context)
            label = "{}..{}".format(*windows.label_of(window))
            print(
                f"window    {number_of} of {len(own)}: {len(shown.input_ids)} tokens, label "
                f"{label} = {text!r}"
            )
            print(f"          {visible(' '.join(tokenizer.tokens(shown.input_ids)))}")
        print()
