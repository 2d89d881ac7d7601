"""The proof beside transformers: it holds for every form of checkpoint, and it can fail."""

import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import BertModel

from bertqa.answering import answerer as answering
from bertqa.answering.answers import Prediction
from bertqa.commands import verify
from bertqa.commands.flags import run_script
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import make_windows
from bertqa.explain import comparison, verification
from bertqa.explain.differences import Differences, Row
from bertqa.model import bert as model
from bertqa.model import kernels
from bertqa.settings import WindowSettings
from tests.helpers import their_model, write_checkpoint

LAYERS = 2
WINDOWS = ["--max_seq_length", 64, "--doc_stride", 16]
QUESTIONS = [
    {"question": "Who came?", "context": "Ada came to the river port."},
    {"question": "What did a man see?", "context": "In a town by the river [SEP] a man saw ships."},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    return write_checkpoint(folder, num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "two.json"
    path.write_text(json.dumps({"data": QUESTIONS}))
    return path


@pytest.fixture
def run(
    checkpoint: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, Differences]]:
    """The command on two questions: its exit code, and the rows that it printed."""
    seen: list[Differences] = []
    whole = verification.compare

    def kept(*arguments: Any) -> Differences:
        seen.append(whole(*arguments))
        return seen[-1]

    monkeypatch.setattr(verification, "compare", kept)

    def call_it(folder: Path = checkpoint, *more: object) -> tuple[int, Differences]:
        code = call(folder, "--input", questions, *WINDOWS, *more)
        return code, seen[-1]

    return call_it


def call(*arguments: object) -> int:
    return run_script(verify.main, verify.parse_flags(list(map(str, arguments))))


def failed(found: Differences) -> set[str]:
    return {f"{row.quantity} {row.layer}".strip() for row in found.failed}


# --- it holds ------------------------------------------------------------------------------------


def test_all_rows_on_its_own_texts(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.md"
    assert call(checkpoint, "--markdown", page) == 0
    heading, table, verdict = capsys.readouterr().out.strip().split("\n\n")
    assert (
        re.search(r"\b6 questions\b", heading)
        and "to 384 tokens" in heading
        and "its own" in heading
    )
    parts = ["embeddings", *map(str, range(LAYERS)), "S and E"]
    each = ("attention probabilities", "hidden states")
    expected = [
        "windows of a question", "weights", "embeddings",
        *(f"{quantity} {layer}" for layer in range(LAYERS) for quantity in each),
        "start logits", "end logits", "loss", *(f"gradient {part}" for part in parts),
        *(f"AdamW step {part}" for part in parts), "answers",
    ]  # fmt: skip
    _, *lines = table.splitlines()
    assert all(
        " ".join(line.split()).startswith(n) for line, n in zip(lines, expected, strict=True)
    )
    assert all("  ok" in line for line in lines)
    assert verdict == f"equal: all {len(expected)} rows are within their bounds"
    written = page.read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in written if line.startswith("| ")]
    assert [f"{row[0]} {row[1]}".strip() for row in rows[2:]] == expected
    assert f"**{verdict}**" in page.read_text()


def test_one_of_its_texts_is_longer_than_a_window(checkpoint: Path) -> None:
    tokenizer = BertTokenizer.load(checkpoint)
    windows = make_windows(verification.SAMPLES, tokenizer, WindowSettings())
    counts = torch.bincount(windows.example)
    assert counts[1] > 1 and counts[0] == 1
    assert len({int(length) for length in windows.lengths}) > 3
    words = [len(example.context.split()) for example in verification.SAMPLES]
    assert max(words) > 384  # so it is for every tokenizer


def test_a_checkpoint_without_s_and_e(
    checkpoint: Path, tmp_path: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(checkpoint, folder)
    BertModel.from_pretrained(checkpoint).save_pretrained(folder)
    code, found = run(folder)
    assert code == 0 and not found.failed
    assert "drawn, the checkpoint has none" in capsys.readouterr().out


def test_shards_and_a_pickle(checkpoint: Path, tmp_path: Path, run: Any) -> None:
    sharded, pickled = tmp_path / "sharded", tmp_path / "pickled"
    theirs = their_model(vocab_size=load_vocab(checkpoint), num_hidden_layers=LAYERS,
                         max_position_embeddings=384)  # fmt: skip
    for folder in (sharded, pickled):
        shutil.copytree(checkpoint, folder)
        (folder / "model.safetensors").unlink()
    theirs.save_pretrained(sharded, max_shard_size="20KB")
    assert (sharded / "model.safetensors.index.json").exists()
    torch.save(theirs.state_dict(), pickled / "pytorch_model.bin")
    assert run(sharded)[0] == 0
    assert call(pickled) == 2
    assert run(pickled, "--allow_bin")[0] == 0


def load_vocab(folder: Path) -> int:
    return BertTokenizer.load(folder).vocab_size


# --- and it can fail -----------------------------------------------------------------------------


def test_one_weight_that_is_another(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = answering.load_checkpoint

    def spoilt(*arguments: Any, **flags: Any) -> Any:
        ours, report = load(*arguments, **flags)
        with torch.no_grad():
            ours.layers[1].feed_forward.down.weight[3, 5] += 0.1
        return ours, report

    monkeypatch.setattr(answering, "load_checkpoint", spoilt)
    code, found = run()
    assert code == 1
    named = {row.quantity: row.worst for row in found.failed}
    assert named["weights"] == "bert.encoder.layer.1.output.dense.weight"
    assert {"weights", "hidden states 1", "start logits"} <= failed(found)
    assert not {"hidden states 0", "embeddings", "attention probabilities 1"} & failed(found)
    out = capsys.readouterr().out
    assert "NOT equal: " in out and "FAILED  bert.encoder.layer.1.output.dense.weight" in out


def test_the_other_gelu(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: model.FeedForward, hidden: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(hidden), approximate="tanh"))

    monkeypatch.setattr(model.FeedForward, "forward", forward)
    code, found = run()
    assert code == 1
    assert {"hidden states 0", "hidden states 1", "gradient 0", "gradient embeddings"} <= failed(
        found
    )
    assert not {"weights", "embeddings", "attention probabilities 0"} & failed(found)


def fused_attention(*arguments: Any) -> torch.Tensor:
    return 1.001 * FUSED(*arguments)


def probabilities(*arguments: Any) -> torch.Tensor:
    return 1.001 * PROBABILITIES(*arguments)


def start_alone(output: Any, lengths: Any, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    return LOSSES(output, lengths, start, start)


def decaying_more(*arguments: Any) -> torch.optim.AdamW:
    optimizer = OPTIMIZER(*arguments)
    optimizer.param_groups[0]["weight_decay"] *= 1.5
    return optimizer


def shifted(*arguments: Any) -> Any:
    windows = WINDOWS_OF(*arguments)
    windows.contexts.starts[0] += 1
    return windows


FUSED, PROBABILITIES = kernels.cpu_attention, model.AttentionProbabilities.forward
LOSSES, OPTIMIZER, WINDOWS_OF = (
    model.window_losses,
    comparison.make_optimizer,
    verification.make_windows,
)


@pytest.mark.parametrize(
    ("where", "name", "fault", "expected", "unexpected"),
    [
        (kernels, "cpu_attention", fused_attention, "hidden states 0", "attention probabilities 0"),
        (
            model.AttentionProbabilities,
            "forward",
            probabilities,
            "attention probabilities 0",
            "embeddings",
        ),
        (comparison, "window_losses", start_alone, "loss", "end logits"),
        (comparison, "make_optimizer", decaying_more, "AdamW step 0", "gradient 0"),
        (verification, "make_windows", shifted, "windows of a question", "embeddings"),
    ],
    ids=["fused attention", "attention probabilities", "loss", "optimiser", "windows"],
)
def test_each_part_has_its_row(
    run: Any, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, fault: Any, expected: str,
    unexpected: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(where, name, fault)
    code, found = run()
    assert code == 1
    assert expected in failed(found) and unexpected not in failed(found)


def test_which_implementation_of_attention_failed(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "cpu_attention", fused_attention)
    row = next(row for row in run()[1].rows if row.quantity == "hidden states")
    assert row.relative("reference") <= row.bound < row.relative("fused")


def test_an_answer_that_is_another(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = comparison.QuestionAnswerer.answer

    def wrong(self: Any, examples: Any) -> Iterator[Prediction]:
        for prediction in answer(self, examples):
            first = prediction.answers[0]._replace(start_logit=99.0)
            yield Prediction(prediction.id, "another", (first,), "another", None)

    monkeypatch.setattr(comparison.QuestionAnswerer, "answer", wrong)
    code, found = run()
    assert code == 1 and failed(found) == {"answers"}
    assert found.rows[-1].absolute("fused") == 2 and found.rows[-1].worst


def test_two_answers_of_one_score_count_as_the_same(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = comparison.QuestionAnswerer.answer

    def tied(self: Any, examples: Any) -> Iterator[Prediction]:
        for prediction in answer(self, examples):
            yield Prediction(prediction.id, "another", prediction.answers, "another", None)

    monkeypatch.setattr(comparison.QuestionAnswerer, "answer", tied)
    assert run()[0] == 0


def test_bounds_are_near_what_rounding_does(run: Any, checkpoint: Path) -> None:
    code, found = run()
    largest = max(row.relative(variant) for row in found.rows for variant in row.variants)
    assert code == 0 and 0 < largest < 2e-5  # the bounds are 5e-5 and 5e-4
    code, found = run(checkpoint, "--bound", 1e-9)
    assert code == 1 and "hidden states 1" in failed(found)


# --- rows ----------------------------------------------------------------------------------------


def test_a_difference_is_relative_to_the_largest_of_the_tensor() -> None:
    row = Row("q", "0", bound=0.01)
    row.see("a", torch.tensor([100.0, 1e-9]), torch.tensor([100.0, 0.5]))
    assert row.absolute("a") == pytest.approx(0.5) and row.relative("a") == pytest.approx(0.005)
    assert row.is_ok and row.absolute("b") is None
    row.see("b", torch.tensor([1.0]), torch.tensor([-1.0]), part="other")
    assert row.relative("b") == 2 and not row.is_ok and row.worst == "other"


def test_batches_add_up_to_one_tensor() -> None:
    row = Row("q", "", bound=1)
    row.see("a", torch.tensor([1.5]), torch.tensor([1.0]))
    row.see("a", torch.tensor([50.0]), torch.tensor([50.0]))
    assert (row.absolute("a"), row.relative("a")) == (0.5, 0.01)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_passes_every_bound(number: float) -> None:
    row = Row("q", "", bound=1e9)
    row.see("a", torch.tensor([number, 1.0]), torch.tensor([1.0, 1.0]))
    row.see("a", torch.tensor([1.0]), torch.tensor([1.0]))
    assert not row.is_ok


def test_a_reference_that_is_no_number_passes_no_bound() -> None:
    row = Row("q", "", bound=1e9)
    row.see("a", torch.ones(2), torch.ones(2), part="first")
    row.see("a", torch.ones(2), torch.tensor([math.nan, 1.0]), part="second")
    assert row.relative("a") == math.inf and not row.is_ok and row.worst == "second"


def test_each_form_keeps_its_count() -> None:
    row = Row("q", "", bound=0)
    row.count("reference", ["x"], 10)
    row.count("fused", ["x"], 10)
    assert row.absolute("reference") == row.absolute("fused") == 1
    row = Row("q", "", bound=0)
    row.count("reference", [], 10)
    row.count("fused", ["x", "y"], 10)
    assert (row.absolute("reference"), row.absolute("fused")) == (0, 2)


def test_a_difference_from_nothing_is_infinite() -> None:
    row = Row("q", "", bound=1e9)
    row.see("a", torch.zeros(2), torch.zeros(2))
    assert row.relative("a") == 0 and row.is_ok and row.worst == ""
    row.see("a", torch.full((2,), 1e-30), torch.zeros(2))
    assert not row.is_ok


# --- what it refuses -----------------------------------------------------------------------------


def test_without_transformers_it_says_what_to_install(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert call(checkpoint) == 2
    assert 'pip install "transformers>=5.0"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--bound", 0], "--bound 0.0"),
        (["--bound", "nan"], "--bound nan"),
        (["--max_samples", 0], "--max_samples 0"),
        (["--max_seq_length", 4], "--max_seq_length 4"),
        (["--max_seq_length", 385], "--max_seq_length 385"),
        (["--input", "absent.json"], "absent.json does not exist"),
        (["--markdown", __file__], "test_verify.py is there already"),
    ],
)
def test_bad_flags(
    checkpoint: Path, flags: list[object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(checkpoint, *flags) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_a_tokenizer_of_another_model(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(checkpoint, folder)
    their_model(vocab_size=20, max_position_embeddings=384).save_pretrained(folder)
    assert call(folder) == 2
    assert "take the tokenizer that belongs to the model" in capsys.readouterr().err


def test_a_folder_that_only_we_can_open(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Closed:
        def __getattr__(self, name: str) -> Any:
            raise ValueError("no such model")

    monkeypatch.setattr(verification, "their_library", Closed)
    assert call(checkpoint) == 2
    assert "transformers cannot open" in capsys.readouterr().err
