"""Ablation: what is lost is what a model without the part gets wrong; ranking, files, refusals."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

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
from bertqa.model.config import BertConfig
from bertqa.runtime import local_runtime
from bertqa.settings import DecodingSettings, WindowSettings
from tests.helpers import (
    STORIES,
    STORIES_V2,
    TINY,
    our_batch,
    random_windows,
    write_checkpoint,
)

SVG = "{http://www.w3.org/2000/svg}"
WINDOWS = ["--max_seq_length", 96, "--doc_stride", 16, "--max_query_length", 24]
HERE = ["--device", "cpu", "--precision", "fp32"]
LAYERS, HEADS, COUNT = TINY["num_hidden_layers"], TINY["num_attention_heads"], 12


def call(*arguments: object) -> int:
    return run_script(ablate.main, ablate.parse_flags(list(map(str, arguments))))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def data(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions whose gold is what the whole model says, so that there is something to lose."""
    qa = QuestionAnswerer.from_pretrained(
        checkpoint, windows=WindowSettings(96, 16, 24), device="cpu", precision="fp32"
    )
    examples = read_examples(STORIES)[:COUNT]
    rows = []
    for example, prediction in zip(examples, qa.answer(examples), strict=True):
        best = prediction.answers[0]
        gold = {"text": [best.text], "answer_start": [best.start]}
        rows.append({"question": example.question, "context": example.context, "answers": gold})
    path = tmp_path_factory.mktemp("data") / "own.json"
    path.write_text(json.dumps({"data": rows}))
    return path


@pytest.fixture(scope="module", params=["mask", "mean"])
def folder(
    request: pytest.FixtureRequest,
    checkpoint: Path,
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("ablation") / request.param
    flags = ["--how", request.param, "--output_dir", path]
    assert call(checkpoint, data, *flags, *WINDOWS, *HERE) == 0
    return path


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "ablation.json").read_text())


def measured(model: BertForQuestionAnswering, checkpoint: Path, data: Path) -> Evaluation:
    """A model on the same questions, by the way that training measures one."""
    examples = read_examples(data)
    tokenizer = BertTokenizer.load(checkpoint)
    windows = make_labelled_windows(examples, tokenizer, WindowSettings(96, 16, 24))
    return Evaluator(examples, windows, DecodingSettings(), local_runtime("cpu", "fp32"))(model)


def assert_told(entry: dict[str, Any], expected: Evaluation) -> None:
    figures = (entry["exact_match"], entry["f1"])
    assert figures == pytest.approx((expected.exact_match, expected.f1))
    assert entry["loss"] == pytest.approx(expected.loss, abs=1e-4)


def test_every_part_once_and_the_most_needed_first(folder: Path) -> None:
    found = told(folder)
    rows = found["ranking"]
    parts = {(row["layer"], row["head"]) for row in rows}
    heads = [*range(HEADS), None]
    assert parts == {(layer, head) for layer in range(LAYERS) for head in heads}
    assert len(rows) == len(parts)
    keys = [(row["f1_lost"], row["exact_match_lost"], row["loss_added"]) for row in rows]
    assert keys == sorted(keys, reverse=True)
    for row in rows:
        assert row["f1_lost"] == found["whole"]["f1"] - row["f1"]
        assert row["exact_match_lost"] == found["whole"]["exact_match"] - row["exact_match"]
        assert row["loss_added"] == row["loss"] - found["whole"]["loss"]
    assert (found["questions"], found["how"]) == (COUNT, folder.name)
    assert len({row["loss"] for row in rows}) == len(rows)
    assert len({row["f1"] for row in rows}) > 4


def test_the_figures_are_those_of_a_model_without_the_part(
    folder: Path, checkpoint: Path, data: Path
) -> None:
    found = told(folder)
    assert found["whole"]["exact_match"] == 100
    rows = {(row["layer"], row["head"]): row for row in found["ranking"]}
    assert_told(found["whole"], measured(load_checkpoint(checkpoint)[0], checkpoint, data))
    shorter = load_checkpoint(checkpoint)[0]
    shorter.layers = nn.ModuleList(layer for i, layer in enumerate(shorter.layers) if i != 1)
    assert_told(rows[1, None], measured(shorter, checkpoint, data))
    if folder.name == "mean":
        return
    headless = load_checkpoint(checkpoint)[0]
    size = headless.config.head_size
    with torch.no_grad():  # what the head gathered goes nowhere
        headless.layers[2].attention.output.weight[:, 3 * size : 4 * size] = 0
    assert_told(rows[2, 3], measured(headless, checkpoint, data))


def test_a_head_is_masked_or_averaged_and_a_layer_skipped() -> None:
    torch.manual_seed(0)
    model = BertForQuestionAnswering(BertConfig(**TINY)).eval()
    batch = our_batch(*random_windows())
    for part, changes in (
        (((1, None), "mask"), {"skip_layers": {1}}),
        (((1, 2), "mask"), {"mask_heads": {(1, 2)}}),
        (((1, 2), "mean"), {"mean_heads": {(1, 2)}}),
    ):
        with torch.no_grad(), without(model, *part):
            found = model(batch)
        with torch.no_grad(), intervene(model, **changes):
            expected = model(batch)
        assert torch.equal(found.start_logits, expected.start_logits)
        with torch.no_grad():
            assert not torch.equal(found.start_logits, model(batch).start_logits)


def test_the_picture_has_every_part(folder: Path) -> None:
    root = ET.fromstring((folder / "ablation.svg").read_text())
    titles = {e.text for e in root.iter(f"{SVG}title")}
    expected = set()
    for row in told(folder)["ranking"]:
        head = f", head {row['head']}"
        name = (
            f"whole layer {row['layer']}" if row["head"] is None else f"layer {row['layer']}{head}"
        )
        expected.add(f"{name}: {row['f1_lost']:.2f}")
    assert titles == expected


def test_what_is_printed(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return make_labelled_windows(*arguments)

    monkeypatch.setattr(ablation, "make_labelled_windows", counted)
    flags = ["--max_samples", 4, "--show", 5, "--output_dir", tmp_path]
    assert call(checkpoint, STORIES, *flags, *WINDOWS, *HERE) == 0
    assert len(calls) == 1  # tokenised once, for all passes
    printed = capsys.readouterr()
    parts = LAYERS * (1 + HEADS)
    said = f"4 questions in 36 windows, once for each of {parts} heads and layers: about [0-9]+ s"
    assert re.match(said, printed.err)
    heading, table = printed.out.strip().split("\n\n")
    whole = told(tmp_path)["whole"]
    assert heading.startswith(
        f"the whole model: EM {whole['exact_match']:.2f}, F1 {whole['f1']:.2f}"
    )
    lines = table.splitlines()
    assert len(lines) == 1 + LAYERS + 5 + 1
    assert lines[-1].startswith(f"... and {LAYERS * HEADS - 5} heads: F1 lost ")
    first = next(row for row in told(tmp_path)["ranking"] if row["head"] is None)
    assert lines[1].split() == [
        "layer", str(first["layer"]), f"{first['exact_match_lost']:.2f}",
        f"{first['f1_lost']:.2f}", f"{first['loss_added']:.4f}",
    ]  # fmt: skip


def effect(layer: int, head: int | None, em: float, f1: float, loss: float) -> Effect:
    whole = Evaluation([], 1.0, {"exact_match": 50.0, "f1": 60.0})
    worse = Evaluation([], 1.0 + loss, {"exact_match": 50.0 - em, "f1": 60.0 - f1})
    return Effect.of((layer, head), worse, whole)


def test_the_loss_ranks_what_costs_the_same() -> None:
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


def test_questions_without_an_answer(checkpoint: Path, tmp_path: Path) -> None:
    flags = ["--max_samples", 6, "--output_dir", tmp_path / "v2", "--version_2_with_negative"]
    assert call(checkpoint, STORIES_V2, *flags, *WINDOWS, *HERE) == 0
    assert told(tmp_path / "v2")["questions"] == 6


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max_samples", 0], "--max_samples 0"),
        (["--show", 0], "--show 0"),
        (["--max_seq_length", 4], "--max_seq_length 4"),
        (["--n_best_size", 0], "--n_best_size 0"),
        (["--output_dir", "FULL"], "ablation.svg is there already"),
        (["--output_dir", "FULL/ablation.svg"], "cannot be made"),
    ],
)
def test_bad_flags(
    checkpoint: Path, tmp_path: Path, flags: list[object], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    full = tmp_path / "full"
    full.mkdir()
    (full / "ablation.svg").write_text("mine")
    given = [str(flag).replace("FULL", str(full)) for flag in flags]
    assert call(checkpoint, STORIES, "--output_dir", tmp_path / "new", *given, *HERE) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert (full / "ablation.svg").read_text() == "mine"


def test_what_is_there_is_replaced_on_request(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "ablation.svg").write_text("old")
    flags = ["--max_samples", 1, "--output_dir", tmp_path, "--overwrite_output_dir"]
    assert call(checkpoint, STORIES, *flags, *WINDOWS, *HERE) == 0
    assert (tmp_path / "ablation.svg").read_text().startswith("<svg")


def test_bad_data(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({"data": [{"question": "Who?", "context": "Ada."}]}))
    for path, said in (
        (bare, "gold"),
        (STORIES_V2, "without an answer"),
        (tmp_path / "no", "exist"),
    ):
        assert call(checkpoint, path, "--output_dir", tmp_path / "new", *HERE) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
