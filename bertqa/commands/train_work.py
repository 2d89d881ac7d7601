"""The work of ``bertqa train``: a run, and what is printed and drawn of it."""

import argparse

from bertqa.report.training_page import RunReport
from bertqa.runtime import start_runtime, stop_runtime
from bertqa.settings import DataSettings, DecodingSettings, TrainingSettings, WindowSettings
from bertqa.training.job import train


def run(
    flags: argparse.Namespace,
    data: DataSettings,
    settings: TrainingSettings,
    windows: WindowSettings,
    decoding: DecodingSettings,
) -> None:
    """Train, and say where the model is."""
    runtime = start_runtime(flags.device, flags.precision)
    try:
        train(
            flags.model, data, flags.output_dir,
            settings=settings, windows=windows, decoding=decoding, runtime=runtime,
            choose_threshold=flags.null_score_diff_threshold is None, resume=flags.resume,
            revision=flags.revision, allow_bin=flags.allow_bin,
            observer=RunReport(flags.output_dir), say=say,
        )  # fmt: skip
    finally:
        stop_runtime()
    if runtime.is_main:
        say(f"saved in {flags.output_dir}; ask it: bertqa infer --model {flags.output_dir}")


def say(what: object) -> None:
    """Print at once, also into a pipe."""
    print(what, flush=True)
