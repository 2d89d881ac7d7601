"""Windows of the train set: made for the first time, and found again by a second start.

The peer is datasets.map with the tokenizer of transformers, as run_qa and the notebook use it: in
one process, whose tokenizer has all threads, and in as many processes as there are threads.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.data import (
    add_model_flag,
    first_questions,
    model_folder,
    read_pairs,
    squad_file,
)
from benchmarks.harness import (
    Contender,
    Measured,
    command_line,
    measure,
    parser,
    positive,
    publish,
    ratio_text,
    table,
)
from benchmarks.processes import run

_TASKS = "benchmarks.feature_tasks"


def cold(source: str, rows: str, model: str, cache: str, threads: int) -> list[Contender]:
    """Nothing is there yet: ours with the cache written and without, and the peer."""
    ours = {"source": source, "model": model, "cache": cache}
    return [
        Contender("bertqa, made and kept", f"{_TASKS}:OurWindows", ours),
        Contender("bertqa, made", f"{_TASKS}:OurWindows", {**ours, "cache": None}),
        Contender("datasets.map", f"{_TASKS}:MappedWindows", {"table": rows, "model": model}),
        Contender(
            f"datasets.map, {threads} processes",
            f"{_TASKS}:MappedWindows",
            {"table": rows, "model": model, "processes": threads},
            environment={"RAYON_NUM_THREADS": "1"},
        ),
    ]


def warm(source: str, rows: str, model: str, cache: str) -> list[Contender]:
    """Everything is there: new processes, their one call and the whole of them."""
    ours, theirs = ["bertqa", source, model, cache], ["datasets", rows, model]
    commands = [
        ("bertqa, the call", ours, "seconds"),
        ("datasets.map, the call", theirs, "seconds"),
        ("bertqa, whole process", ours, ""),
        ("datasets.map, whole process", theirs, ""),
    ]
    return [
        Contender(
            name,
            "benchmarks.processes:process_task",
            {"command": [sys.executable, "-m", _TASKS, *arguments], "prints": prints},
        )
        for name, arguments, prints in commands
    ]


def cold_rows(measured: Sequence[Measured], questions: int) -> list[list[str]]:
    """Rows of the first table; each peer beside ours that also keeps what it made."""
    ours = measured[0]
    rows = []
    for row in measured:
        if row.failure:
            rows.append([row.contender.name, row.failure, "", "", ""])
            continue
        ratio = "" if row is ours or ours.failure else ratio_text(ours.ratios(row))
        rate = f"{questions / row.median:,.0f}"
        rows.append([row.contender.name, f"{row.median:.1f}", rate, ratio, f"{row.peak_mib:.0f}"])
    return rows


def warm_rows(measured: Sequence[Measured]) -> list[list[str]]:
    """Rows of the second table: ours, then the peer's, for the call and for the process."""
    rows = []
    for ours, theirs in zip(measured[::2], measured[1::2], strict=True):
        failure = ours.failure or theirs.failure
        for row in (ours, theirs):
            if failure:
                rows.append([row.contender.name, failure, "", ""])
                continue
            ratio = ratio_text(ours.ratios(theirs)) if row is theirs else ""
            seconds = f"{row.median:.2f}"
            rows.append([row.contender.name, seconds, ratio, f"{row.peak_mib:.0f}"])
    return rows


def main() -> None:
    """Measure and print."""
    flags_parser = parser(__doc__)
    flags_parser.set_defaults(rounds=3)
    add_model_flag(flags_parser)
    flags_parser.add_argument("--questions", type=positive, help="of the train set (all)")
    flags = flags_parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(model_folder(flags.model, folder))
        source = squad_file("train", flags.data, folder)
        questions = flags.questions or sum(1 for _ in read_pairs(source))
        if flags.questions:
            source = first_questions(source, folder / "asked.json", flags.questions)
        rows, cache = str(folder / "rows"), str(folder / "cache")
        code = f"import {_TASKS} as tasks, sys; print(tasks.save_table(*sys.argv[1:]))"
        run([sys.executable, "-c", code, str(source), rows])
        settings = {"rounds": flags.rounds, "threads": flags.threads}
        first = measure(cold(str(source), rows, model, cache, flags.threads), **settings)
        second = measure(warm(str(source), rows, model, cache), **settings)
    header = ["first time", "seconds", "questions/s", "bertqa is faster", "peak MiB"]
    text = table(header, cold_rows(first, questions))
    header = ["second start", "seconds", "bertqa is faster", "peak MiB"]
    text += "\n\n" + table(header, warm_rows(second))
    text += f"\n\n{questions} questions, {flags.threads} threads, {flags.rounds} rounds."
    publish("features", command_line("benchmarks.features", flags_parser, flags), text, flags.page)


if __name__ == "__main__":
    main()
