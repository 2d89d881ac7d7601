"""The model that the flags name, ready to answer."""

import argparse

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.commands.flags import decoding_settings, window_settings
from bertqa.model.names import find_folder


def load_answerer(flags: argparse.Namespace) -> QuestionAnswerer:
    """The model that the flags name, asked as its decoding.json and the flags say.

    Raises:
        UserError: it is not to be had, or cannot be asked so.
    """
    folder = find_folder(flags.model, allow_bin=flags.allow_bin)
    windows, decoding = read_decoding_file(folder)
    return QuestionAnswerer.from_pretrained(
        folder,
        windows=window_settings(flags, stored=windows),
        decoding=decoding_settings(flags, stored=decoding),
        device=flags.device,
        precision=flags.precision,
        allow_bin=flags.allow_bin,
    )
