"""Ablation: metrics without a part, ranking, output files, errors."""

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.evaluation import Evaluation, Evaluator
from bertqa.commands import ablate
from bertqa.commands.flags import run_script
from bertqa.data.labels import make_labelled_windows
from bertqa.data.readers import read_examples
from bertqa.data.tokenization import BertTokenizer
from bertqa.explain import ablation
from bertqa.explain.ablation import Ablation, Effect, ranked, without
from bertqa.explain.hooks import intervene
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import load_checkpoint
from bertqa.runtime import local_runtime
from bertqa.settings import DecodingSettings, WindowSettings
from tests.helpers import STORIES, STORIES_V2, TINY, our_batch, random_windows

WINDOWS = ["--max_seq_length", 96, "--doc_stride", 16, "--max_query_length", 24]
SETTINGS = WindowSettings(96, 16, 24)
HERE = ["--device", "cpu", "--precision", "fp32"]
LAYERS, HEADS, COUNT = TINY["num_hidden_layers"], TINY["num_attention_heads"], 12


def call(*arguments: object) -> int:
    return run_script(ablate.main, ablate.parse_flags(list(map(str, arguments))))


@pytest.fixture(scope="session")
def data(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions whose gold answers are the whole model's, so that ablation can lower the F1."""
    qa = QuestionAnswerer.from_pretrained(folder, windows=SETTINGS, device="cpu", precision="fp32")
    examples = read_examples(STORIES)[:COUNT]
    rows = []
    for example, prediction in zip(examples, qa.answer(examples), strict=True):
        best = prediction.answers[0]
        gold = {"text": [best.text], "answer_start": [best.start]}
        rows.append({"question": example.question, "context": example.context, "answers": gold})
    path = tmp_path_factory.mktemp("data") / "own.json"
    path.write_text(json.dumps({"data": rows}))
    return path


@pytest.fixture(scope="session", params=["mask", "mean"])
def written(
    request: pytest.FixtureRequest, folder: Path, data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    path = tmp_path_factory.mktemp("ablation") / request.param
    flags = ["--how", request.param, "--output_dir", path]
    assert call(folder, data, *flags, *WINDOWS, *HERE) == 0
    return path


def figures_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "ablation.json").read_text())


def assert_figures(
    entry: dict[str, Any], model: BertForQuestionAnswering, tokenizer: BertTokenizer, data: Path
) -> None:
    """Assert that the metrics are those of ``model`` on the same questions."""
    examples = read_examples(data)
    windows = make_labelled_windows(examples, tokenizer, SETTINGS)
    runtime = local_runtime("cpu", "fp32")
    expected = Evaluator(examples, windows, DecodingSettings(), runtime)(model)
    figures = (entry["exact_match"], entry["f1"])
    assert figures == pytest.approx((expected.exact_match, expected.f1))
    assert entry["loss"] == pytest.approx(expected.loss, abs=1e-4)


def test_every_part_is_ranked_once_by_its_effect(written):
    found = figures_in(written)
    rows, whole = found["ranking"], found["whole"]
    heads = [*range(HEADS), None]
    assert Counter((row["layer"], row["head"]) for row in rows) == Counter(
        (layer, head) for layer in range(LAYERS) for head in heads
    )
    keys = [(row["f1_lost"], row["exact_match_lost"], row["loss_added"]) for row in rows]
    assert keys == sorted(keys, reverse=True)
    assert keys == [
        (whole["f1"] - r["f1"], whole["exact_match"] - r["exact_match"], r["loss"] - whole["loss"])
        for r in rows
    ]
    assert (found["questions"], found["how"]) == (COUNT, written.name)
    assert len({row["loss"] for row in rows}) == len(rows)
    assert len({row["f1"] for row in rows}) > 4


def test_metrics_equal_those_of_a_model_without_the_part(written, folder, tokenizer, data):
    found = figures_in(written)
    assert found["whole"]["exact_match"] == 100
    rows = {(row["layer"], row["head"]): row for row in found["ranking"]}
    model, shorter, headless = (load_checkpoint(folder)[0] for _ in range(3))
    assert_figures(found["whole"], model, tokenizer, data)
    del shorter.layers[1]
    assert_figures(rows[1, None], shorter, tokenizer, data)
    if written.name == "mask":
        size = headless.config.head_size
        with torch.no_grad():  # remove the head's contribution
            headless.layers[2].attention.output.weight[:, 3 * size : 4 * size] = 0
        assert_figures(rows[2, 3], headless, tokenizer, data)


@pytest.mark.parametrize(
    ("part", "how", "changes"),
    [
        ((1, None), "mask", {"skip_layers": {1}}),
        ((1, 2), "mask", {"mask_heads": {(1, 2)}}),
        ((1, 2), "mean", {"mean_heads": {(1, 2)}}),
    ],
)
def test_a_head_is_masked_or_averaged_and_a_layer_skipped(model, part, how, changes):
    batch = our_batch(*random_windows(vocab_size=60))
    with torch.no_grad(), without(model, part, how):
        found = model(batch)
    with torch.no_grad(), intervene(model, **changes):
        expected = model(batch)
    with torch.no_grad():
        plain = model(batch)
    assert torch.equal(found.start_logits, expected.start_logits)
    assert not torch.equal(found.start_logits, plain.start_logits)


def test_the_heat_map_has_every_part(written):
    root = ET.fromstring((written / "ablation.svg").read_text())
    expected = set()
    for row in figures_in(written)["ranking"]:
        layer, head = row["layer"], row["head"]
        name = f"whole layer {layer}" if head is None else f"layer {layer}, head {head}"
        expected.add(f"{name}: {row['f1_lost']:.2f}")
    assert {e.text for e in root.iter("{http://www.w3.org/2000/svg}title")} == expected


def test_printed_report(folder, tmp_path, capsys, monkeypatch):
    cut = Mock(side_effect=make_labelled_windows)
    monkeypatch.setattr(ablation, "make_labelled_windows", cut)
    flags = ["--max_samples", 4, "--show", 5, "--output_dir", tmp_path]
    assert call(folder, STORIES, *flags, *WINDOWS, *HERE) == 0
    assert cut.call_count == 1  # tokenized once for all passes
    printed, found = capsys.readouterr(), figures_in(tmp_path)
    parts = LAYERS * (1 + HEADS)
    estimate = f"4 questions in 36 windows, once for each of {parts} heads and layers: about [0-9]+"
    assert re.match(estimate, printed.err)
    heading, table = printed.out.strip().split("\n\n")
    whole = found["whole"]
    assert heading.startswith(
        f"the whole model: EM {whole['exact_match']:.2f}, F1 {whole['f1']:.2f}"
    )
    lines = table.splitlines()
    assert len(lines) == 1 + LAYERS + 5 + 1
    assert lines[-1].startswith(f"... and {LAYERS * HEADS - 5} heads: F1 lost ")
    first = next(row for row in found["ranking"] if row["head"] is None)
    figures = "{exact_match_lost:.2f} {f1_lost:.2f} {loss_added:.4f}".format(**first)
    assert lines[1].split() == ["layer", str(first["layer"]), *figures.split()]


def effect(layer: int, head: int | None, em: float, f1: float, loss: float) -> Effect:
    whole = Evaluation([], 1.0, {"exact_match": 50.0, "f1": 60.0})
    worse = Evaluation([], 1.0 + loss, {"exact_match": 50.0 - em, "f1": 60.0 - f1})
    return Effect.of((layer, head), worse, whole)


def test_ties_in_f1_are_ranked_by_em_and_loss():
    effects = [
        effect(0, 0, 0, 0, 0.1), effect(0, 1, 0, 0, 0.3), effect(0, 2, 0, -5, 0.9),
        effect(0, None, 2, 9, 0.0), effect(1, 0, 4, 9, 0.0),
    ]  # fmt: skip
    order = [(e.layer, e.head) for e in ranked(effects)]
    assert order == [(1, 0), (0, None), (0, 1), (0, 0), (0, 2)]
    whole = Evaluation([], 1.0, {"exact_match": 50.0, "f1": 60.0})
    found = Ablation("these questions", whole, ranked(effects))
    lines = found.report(heads=4).splitlines()[2:]
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "layer 0", "layer 1, head 0", "layer 0, head 1", "layer 0, head 0", "layer 0, head 2",
    ]  # fmt: skip
    rest = "... and 3 heads: F1 lost 0.00 to -5.00, loss added 0.9000 to 0.1000"
    assert found.report(heads=1).splitlines()[-1] == rest
    assert lines[1].split()[2:] == ["2.00", "9.00", "0.0000"]


def test_questions_without_an_answer(folder, tmp_path):
    (tmp_path / "ablation.svg").write_text("old")
    flags = ["--max_samples", 6, "--output_dir", tmp_path, "--version_2_with_negative"]
    assert call(folder, STORIES_V2, *flags, "--overwrite_output_dir", *WINDOWS, *HERE) == 0
    assert figures_in(tmp_path)["questions"] == 6
    assert (tmp_path / "ablation.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_samples", 0], "--max_samples must be at least 1, got 0"),
        (["--show", 0], "--show must be at least 1, got 0"),
        (["--max_seq_length", 4], "--max_seq_length must"),
        (["--n_best_size", 0], "--n_best_size must be at least 1, got 0"),
        (["--output_dir", "FULL"], "--output_dir: must not contain ablation.svg yet, got"),
        (["--output_dir", "FULL/ablation.svg"], "must be a folder, got a file"),
    ],
)
def test_bad_flags(folder, tmp_path, flags, message, capsys):
    (tmp_path / "ablation.svg").write_text("mine")
    given = [str(flag).replace("FULL", str(tmp_path)) for flag in flags]
    assert call(folder, STORIES, "--output_dir", tmp_path / "new", *given, *HERE) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert (tmp_path / "ablation.svg").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bare.json", "gold"),
        (STORIES_V2, "an answer to every question"),
        ("absent.json", "exist"),
        ("long.json", "tokens"),
    ],
)
def test_bad_data(folder, tmp_path, name, message, capsys):
    bare = {"data": [{"question": "Who?", "context": "Ada."}]}
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    long = {"question": "Who? " * 400, "context": "Ada.", "answers": ["Ada"]}
    (tmp_path / "long.json").write_text(json.dumps([long]))
    assert call(folder, tmp_path / name, "--output_dir", tmp_path / "new", *HERE) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
