"""The work of ``bertqa ablate``: ask without each head and each layer, rank, keep."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bertqa.answering.evaluation import Evaluator
from bertqa.commands.question_flags import load_answerer
from bertqa.data.labels import make_labelled_windows
from bertqa.data.readers import read_examples
from bertqa.data.squad import check_answers, check_examples, check_version
from bertqa.explain.ablation import Effect, part_effects, parts_of, ranked
from bertqa.files import said_plainly, write_json, write_text
from bertqa.report.charts import heat_map
from bertqa.runtime import limit_onednn_cache


def ablate(flags: argparse.Namespace, figures_file: Path, picture_file: Path) -> None:
    """Measure the answers without each head and each layer; print, write figures and picture."""
    examples = read_examples(flags.data)
    check_examples(examples, str(flags.data))
    examples = examples[: flags.max_samples]
    check_answers(examples, str(flags.data))
    limit_onednn_cache()
    qa = load_answerer(flags)
    check_version(examples, str(flags.data), qa.decoding.version_2_with_negative)
    with said_plainly(flags.output_dir, "made"):  # before the work that is to go there
        flags.output_dir.mkdir(parents=True, exist_ok=True)
    windows = make_labelled_windows(examples, qa.tokenizer, qa.windows)  # once, for all passes
    evaluator = Evaluator(examples, windows, qa.decoding, qa.runtime)
    parts = list(parts_of(qa.model.config, flags.how))
    began = time.monotonic()
    whole = evaluator.of_ready(qa.model)
    seconds = (time.monotonic() - began) * len(parts)
    print(
        f"{len(examples)} questions in {len(windows)} windows, once for each of {len(parts)} heads "
        f"and layers: about {seconds:.0f} s",
        file=sys.stderr,
    )
    with tqdm(total=len(parts), unit="pass", disable=None) as bar:
        effects = part_effects(qa.model, evaluator, parts, whole, bar.update)
    heading = (
        f"the whole model: EM {whole.exact_match:.2f}, F1 {whole.f1:.2f}, loss {whole.loss:.4f} "
        f"({len(examples)} questions in {len(windows)} windows of {flags.data})"
    )
    print(f"{heading}\n\n{ranking(effects, flags.show)}")
    entries = {
        "model": str(flags.model), "data": str(flags.data), "questions": len(examples),
        "windows": len(windows), "how": flags.how,
        "precision": qa.runtime.precision,
        "whole": {"exact_match": whole.exact_match, "f1": whole.f1, "loss": whole.loss},
        "ranking": [asdict(effect) for effect in ranked(effects)],
    }  # fmt: skip
    write_json(figures_file, entries)
    write_text(picture_file, picture(effects))
    print(f"wrote {figures_file}, {picture_file}", file=sys.stderr)


# --- what is shown -------------------------------------------------------------------------------


def ranking(effects: Sequence[Effect], heads: int) -> str:
    """All layers, then so many heads, the most needed first, as a table."""
    layers = [effect for effect in ranked(effects) if effect.head is None]
    of_heads = [effect for effect in ranked(effects) if effect.head is not None]
    lines = [f"{'without':<20}{'EM lost':>9}{'F1 lost':>9}{'loss added':>12}"]
    for effect in [*layers, *of_heads[:heads]]:
        figures = f"{effect.exact_match_lost:9.2f}{effect.f1_lost:9.2f}{effect.loss_added:12.4f}"
        lines.append(f"{effect.name:<20}{figures}")
    rest = of_heads[heads:]
    if rest:
        lines.append(
            f"... and {len(rest)} heads: F1 lost {rest[0].f1_lost:.2f} to {rest[-1].f1_lost:.2f}, "
            f"loss added {max(e.loss_added for e in rest):.4f} to "
            f"{min(e.loss_added for e in rest):.4f}"
        )
    return "\n".join(lines)


def picture(effects: Sequence[Effect]) -> str:
    """F1 lost without each head and each layer, as an SVG document."""
    lost: dict[tuple[int, Any], float] = {(e.layer, e.head): e.f1_lost for e in effects}
    layers = 1 + max(layer for layer, _ in lost)
    heads = 1 + max(head for _, head in lost if head is not None)
    return heat_map(
        "F1 lost without one head, or without one layer, in points",
        [[lost[layer, head] for head in range(heads)] for layer in range(layers)],
        [lost[layer, None] for layer in range(layers)],
        row="layer",
        column="head",
        bar="whole layer",
    )
