"""Scores of all windows of the dev set to n-best lists with their texts.

The peer is compute_predictions_logits of transformers 4.57, on every tenth question, say; rates
are compared. It looks at the 20 best starts and ends, as top20 does, and makes answers of the
words that stand between blanks, which it then tries to cut down to the tokens. Where that fails,
its answer is top20's with the rest of the words; that counts as equal for the check, and the table
has the share that is equal to the letter.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import (
    PEER_HINT,
    add_model_flag,
    add_peer_flag,
    first_questions,
    model_folder,
    squad_file,
)
from benchmarks.decoding_tasks import write_job
from benchmarks.harness import (
    Contender,
    Measured,
    command_line,
    measure,
    parser,
    positive,
    publish,
    ratio_text,
    say,
    table,
)
from benchmarks.processes import share_equal

TOP20, EXACT, PEER = "bertqa top20", "bertqa exact", "compute_predictions_logits"
_ENOUGH = 99.0  # per cent of answers on which top20 and the peer must agree


class Agreement:
    """Compares answers with those of top20, and remembers how many are equal."""

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}

    def __call__(
        self, name: str, result: dict[str, list[Any]], reference: dict[str, list[Any]]
    ) -> str:
        """Refuse a peer that gives other answers."""
        theirs, ours = result["answers"], reference["answers"]
        self.shares[name] = share_equal(ours, theirs)
        if name != PEER:
            return ""
        say(f"where {PEER} differs: {dict(differences(ours, theirs))}")
        agreed = share_agreed(ours, reference["widened"], theirs)
        if agreed >= _ENOUGH:
            return ""
        return f"only {agreed:.1f} % of the answers are those of {TOP20}"


def share_agreed(ours: Sequence[str], widened: Sequence[str], theirs: Sequence[str]) -> float:
    """Per cent of theirs that are ours, or ours with the rest of the words, blanks aside."""
    rows = zip(ours, widened, theirs, strict=True)
    agreed = [_close(b) in (_close(a), _close(words)) for a, words, b in rows]
    return 100 * sum(agreed) / max(1, len(agreed))


def _close(text: str) -> str:
    """The text without blanks."""
    return "".join(text.split())


def differences(ours: Sequence[str], theirs: Sequence[str]) -> Counter[str]:
    """How pairs of answers that are not equal differ, counted."""
    return Counter(_difference(a, b) for a, b in zip(ours, theirs, strict=True) if a != b)


def _difference(ours: str, theirs: str) -> str:
    if _close(ours) == _close(theirs):
        return "blanks"
    if ours in theirs:
        return "theirs is wider"
    if theirs in ours:
        return "ours is wider"
    return "another answer"


def contenders(flags: argparse.Namespace, folder: Path, step: int) -> list[Contender]:
    """Ours with both decoders, then the peer."""
    tasks = "benchmarks.decoding_tasks"
    job = {"folder": str(folder), "step": step}
    rows = [
        Contender(name, f"{tasks}:OurDecoding", {**job, "decoder": decoder})
        for name, decoder in ((TOP20, "top20"), (EXACT, "exact"))
    ]
    if flags.peer_python is None:
        say(PEER_HINT)
        return rows
    return [*rows, Contender(PEER, f"{tasks}:PeerDecoding", job, str(flags.peer_python))]


def rows_of(
    measured: Sequence[Measured], agreement: Agreement, questions: dict[str, int]
) -> list[list[str]]:
    """The table's rows; ratios are of rates, since the peer does fewer questions."""
    by_name = {row.contender.name: row for row in measured}
    rows = []
    for name, row in by_name.items():
        if row.failure:
            rows.append([name, row.failure, *[""] * 5])
            continue
        ratios = [
            ratio_of_rates(by_name[ours], row, questions) if name == PEER else ""
            for ours in (TOP20, EXACT)
        ]
        rate = f"{questions[name] / row.median:,.0f}"
        share = f"{agreement.shares[name]:.1f}"
        rows.append([name, str(questions[name]), rate, *ratios, share, f"{row.peak_mib:.0f}"])
    return rows


def ratio_of_rates(ours: Measured, theirs: Measured, questions: dict[str, int]) -> str:
    """How many times as many questions a second ours does, round by round."""
    if ours.failure:
        return ""
    share = questions[ours.contender.name] / questions[theirs.contender.name]
    return ratio_text([share * ratio for ratio in ours.ratios(theirs)])


def main() -> None:
    """Measure and print."""
    flags_parser = parser(__doc__)
    add_model_flag(flags_parser)
    add_peer_flag(flags_parser)
    add = flags_parser.add_argument
    add("--questions", type=positive, help="of the dev set (all)")
    add("--step", type=positive, default=10, help="the peer takes one question of so many (10)")
    flags = flags_parser.parse_args()
    agreement = Agreement()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_folder(flags.model, folder)
        source = squad_file("dev", flags.data, folder)
        if flags.questions:
            source = first_questions(source, folder / "asked.json", flags.questions)
        count = write_job(source, model, folder, trained=flags.model is not None)
        rows = contenders(flags, folder, flags.step)
        measured = measure(rows, rounds=flags.rounds, threads=flags.threads, compare=agreement)
    questions = {TOP20: count, EXACT: count, PEER: len(range(0, count, flags.step))}
    header = [
        "decoding", "questions", "questions/s", "bertqa top20 is faster", "bertqa exact is faster",
        "% answers as bertqa top20", "peak MiB",
    ]  # fmt: skip
    text = table(header, rows_of(measured, agreement, questions))
    text += f"\n\n{flags.threads} threads, {flags.rounds} rounds."
    publish("decoding", command_line("benchmarks.decoding", flags_parser, flags), text, flags.page)


if __name__ == "__main__":
    main()
