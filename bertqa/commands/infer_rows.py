"""``bertqa infer --input`` of JSON lines or parquet: one output row per input row.

The rows are streamed, and processes started by torchrun share them.
"""

import argparse
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

from tqdm import tqdm

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.json_lines import answer_lines
from bertqa.answering.line_files import PREDICTIONS, REJECTS, SETTINGS, score_lines, unit_of
from bertqa.answering.parquet_file import PARQUET, from_parquet, to_parquet
from bertqa.answering.parts import PARTS
from bertqa.commands.infer_output import check_outputs, say, write_metrics
from bertqa.commands.question_flags import load_answerer
from bertqa.data.formats import is_parquet
from bertqa.errors import counted
from bertqa.files import output_folder
from bertqa.runtime import Runtime, start_runtime, stop_runtime

LINE_FILES = (PREDICTIONS, REJECTS, SETTINGS, PARTS)


def answer_rows(flags: argparse.Namespace) -> None:
    """Answer the rows of --input; the main process joins the answers of all processes."""
    # The processes only wait for each other, so several may share one GPU, and gloo is enough. The
    # first may wait long for the last; gloo notices at once when a process has died.
    runtime = start_runtime(
        flags.device, flags.precision, backend="gloo", longest_wait=timedelta(days=30)
    )
    try:
        with ExitStack() as stack:
            runtime.on_main(lambda: prepare(flags, stack))
            qa = runtime.main_first(lambda: load_answerer(flags, str(runtime.device)))
            n_best_size = max(flags.top_k, qa.decoding.n_best_size)
            qa.decoding = replace(qa.decoding, n_best_size=n_best_size)
            answered, rejected = share(flags, qa, runtime)
    finally:
        stop_runtime()
    if runtime.is_main:
        finish(flags, qa.decoding.version_2_with_negative, answered, rejected)


def prepare(flags: argparse.Namespace, stack: ExitStack) -> None:
    """Prepare the output folder; ``stack`` removes it again if it is left empty."""
    packs = is_parquet(flags.input)
    check_outputs(flags, (*LINE_FILES, *[PARQUET] * packs), resumable=True)
    stack.enter_context(output_folder(flags.output_dir))
    if flags.resume and packs:
        from_parquet(flags.output_dir)


def share(flags: argparse.Namespace, qa: QuestionAnswerer, runtime: Runtime) -> tuple[int, int]:
    """Answer this process's rows; return the counts answered and rejected by all processes."""
    with tqdm(unit=unit_of(flags.input), disable=None if runtime.is_main else True) as bar:
        return answer_lines(
            qa, flags.input, flags.output_dir, model=flags.model, top_k=flags.top_k,
            all_offsets=flags.all_offsets, skip_bad=flags.skip_bad, resume=flags.resume,
            runtime=runtime, progress=bar.update,
        )  # fmt: skip


def finish(flags: argparse.Namespace, v2: bool, answered: int, rejected: int) -> None:
    """Score the answers, convert them to parquet if the input is, and print where they are."""
    is_rereadable = not flags.input.is_fifo()  # a pipe is not
    metrics = score_lines(flags.input, flags.output_dir, v2=v2, say=say) if is_rereadable else {}
    write_metrics(flags, metrics)
    path = flags.output_dir / PREDICTIONS
    if is_parquet(flags.input):
        to_parquet(flags.output_dir)
        path = flags.output_dir / PARQUET
    others = f", {rejected:,} rejected" if rejected else ""
    say(f"{counted(answered, unit_of(flags.input))} answered in {path}{others}")
