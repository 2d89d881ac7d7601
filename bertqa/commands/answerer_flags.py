"""The model that the flags name, ready to answer."""

import argparse

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.commands.flags import overrides


def load_answerer(flags: argparse.Namespace) -> QuestionAnswerer:
    """The model that the flags name, asked as its decoding.json and the flags say.

    Raises:
        UserError: it is not to be had, or cannot be asked so.
    """
    return QuestionAnswerer.from_pretrained(
        flags.model,
        overrides=overrides(flags),
        device=flags.device,
        precision=flags.precision,
        revision=flags.revision,
        allow_bin=flags.allow_bin,
    )
