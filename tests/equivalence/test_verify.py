"""``bertqa verify`` passes for every format of checkpoint, and each row can fail."""

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import BertModel
from transformers import BertTokenizer as TheirTokenizer

from bertqa.answering import answerer as answering
from bertqa.answering.answers import Prediction
from bertqa.commands import verify
from bertqa.commands.flags import run_script
from bertqa.data import tokenizer_files
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import make_windows
from bertqa.explain import verification
from bertqa.explain.comparison import Row
from bertqa.explain.verification import QUANTITIES, SAMPLES
from bertqa.files import write_json
from bertqa.model import bert, kernels
from bertqa.settings import WindowSettings
from tests.helpers import their_model, vocabulary, write_checkpoint

LAYERS = 2
WINDOWS = ["--max_seq_length", 64, "--doc_stride", 16]
QUESTIONS = [
    {"id": "a", "question": "Who came?", "context": "Ada came to the river port."},
    {"id": "b", "question": "Who saw?", "context": "In a town by the river [SEP] a man saw ships."},
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


def call(*arguments: object) -> int:
    return run_script(verify.main, verify.parse_flags(list(map(str, arguments))))


Rows = dict[str, list[str]]  # quantity -> largest difference, bound, result, first location


def rows_of(report: str) -> Rows:
    lines = [line.strip("|").split(" | ") for line in report.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines[2:]]
    return {quantity: rest for quantity, *rest in cells}


@pytest.fixture
def run(
    checkpoint: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Rows, str]]:
    """Runs the command on two questions; returns exit code, table rows and verdict."""

    def call_it(folder: Path = checkpoint, *more: object) -> tuple[int, Rows, str]:
        code = call(folder, "--input", questions, *WINDOWS, *more)
        printed = capsys.readouterr().out
        assert not printed or "such as [SEP]: 1 question" in printed
        return code, rows_of(printed), printed.strip().splitlines()[-1] if printed else ""

    return call_it


# --- passing -------------------------------------------------------------------------------------


def test_all_quantities_on_its_own_texts(checkpoint, tmp_path, capsys):
    page = tmp_path / "report.md"
    assert call(checkpoint, "--markdown", page) == 0
    printed = capsys.readouterr().out
    assert f"{checkpoint / 'model.safetensors'}: " in printed and " to 384 tokens" in printed
    rows = rows_of(printed)
    assert list(rows) == list(QUANTITIES)
    assert all(result == "ok" and not first for _, _, result, first in rows.values())
    rounding = [float(rows[name][0]) for name, times in QUANTITIES.items() if times]
    assert all(0 < largest < 2e-5 for largest in rounding)  # the bounds are 5e-5 and 5e-4
    assert page.read_text().endswith(printed)


def test_one_of_its_texts_is_longer_than_a_window(checkpoint):
    windows = make_windows(SAMPLES, BertTokenizer.load(checkpoint), WindowSettings())
    counts = torch.bincount(windows.example)
    assert counts.min() == 1 and counts.max() > 1
    assert max(len(example.context.split()) for example in SAMPLES) > 384  # whatever the tokenizer


def test_a_checkpoint_without_s_and_e(checkpoint, tmp_path, capsys):
    folder = tmp_path / "encoder"
    shutil.copytree(checkpoint, folder)
    BertModel.from_pretrained(checkpoint).save_pretrained(folder)
    assert call(folder, "--max_samples", 2) == 0
    assert "random, the checkpoint has none" in capsys.readouterr().out


def test_shards_and_a_pickle(checkpoint, tmp_path, run):
    sharded, pickled = tmp_path / "sharded", tmp_path / "pickled"
    size = BertTokenizer.load(checkpoint).vocab_size
    theirs = their_model(vocab_size=size, num_hidden_layers=LAYERS, max_position_embeddings=384)
    for folder in (sharded, pickled):
        shutil.copytree(checkpoint, folder)
        (folder / "model.safetensors").unlink()
    theirs.save_pretrained(sharded, max_shard_size="20KB")
    assert (sharded / "model.safetensors.index.json").exists()
    torch.save(theirs.state_dict(), pickled / "pytorch_model.bin")
    assert run(sharded)[0] == 0
    assert run(pickled)[0] == 2
    assert run(pickled, "--allow_bin")[0] == 0


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A checkpoint with added tokens."""
    size = len(vocabulary()) + 2
    folder = write_checkpoint(tmp_path / "marked", num_hidden_layers=LAYERS, vocab_size=size)
    write_json(folder / "added_tokens.json", {"zork": size - 2})
    settings = {"tokenizer_class": "BertTokenizer", "additional_special_tokens": ["[E1]"]}
    write_json(folder / "tokenizer_config.json", settings)
    return folder


def test_added_tokens(marked, monkeypatch, capsys):
    assert call(marked, *WINDOWS) == 0
    assert "data: 6 questions" in capsys.readouterr().out
    monkeypatch.setattr(tokenizer_files, "_added_tokens", lambda *a: [])
    assert call(marked, *WINDOWS) == 1
    assert rows_of(capsys.readouterr().out)["token ids"][3] == "question 'added tokens'"


# --- failing -------------------------------------------------------------------------------------

FUSED, PROBABILITIES = kernels.cpu_attention, bert.AttentionProbabilities.forward
LOSSES, WINDOWS_OF, HEAD = verification.window_losses, make_windows, bert.SpanHead.forward
LOAD, ANSWER = answering.load_checkpoint, verification.QuestionAnswerer.answer


def shifted(*arguments: Any) -> Any:
    windows = WINDOWS_OF(*arguments)
    windows.contexts.starts[0] += 1
    return windows


def loaded(change: Callable[[Any], object]) -> Callable[..., Any]:
    """Return ``load_checkpoint`` with a change of one linear layer of layer 1."""

    def load(*arguments: Any, **flags: Any) -> Any:
        ours, report = LOAD(*arguments, **flags)
        change(ours.layers[1].feed_forward.down.weight)
        return ours, report

    return load


@torch.no_grad()
def spoil(weight: torch.Tensor) -> None:
    weight[3, 5] += 0.1


def other_answer(self: Any, examples: Any, score: float = 99.0) -> Iterator[Prediction]:
    for prediction in ANSWER(self, examples):
        first = prediction.answers[0]._replace(start_logit=score)
        yield Prediction(prediction.id, "another", (first,), "another", None)


DAMAGES: dict[str, tuple[Any, str, Any, str]] = {
    # quantity -> owner and name of a function, its replacement, location of the first difference
    "token ids": (verification, "make_windows", shifted, "question 'a'"),
    "weights": (
        answering, "load_checkpoint", loaded(spoil), "bert.encoder.layer.1.output.dense.weight of ",
    ),
    "hidden states": (
        bert.FeedForward, "forward",
        lambda self, x: self.down(F.gelu(self.up(x), approximate="tanh")),
        "layer 0 (reference attention), question 'b'",
    ),
    "attention": (
        bert.AttentionProbabilities, "forward", lambda *a: 1.001 * PROBABILITIES(*a),
        "layer 0 (reference attention), question 'b'",
    ),
    "logits": (
        bert.SpanHead, "forward", lambda *a: bert.BertOutput(*(1.001 * x for x in HEAD(*a))),
        "(reference attention), question 'b'",
    ),
    "loss": (
        verification, "window_losses", lambda o, n, start, end: LOSSES(o, n, start, start),
        "(reference attention), question 'b'",
    ),
    "gradients": (
        answering, "load_checkpoint", loaded(lambda w: w.register_hook(lambda g: 1.01 * g)),
        "bert.encoder.layer.1.output.dense.weight (reference attention), question 'b', ",
    ),
    "answers": (verification.QuestionAnswerer, "answer", other_answer, "question 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_each_quantity_can_differ(run, monkeypatch, quantity):
    owner, name, fault, first = DAMAGES[quantity]
    monkeypatch.setattr(owner, name, fault)
    code, rows, verdict = run()
    assert code == 1
    _, _, result, location = rows[quantity]
    assert result == "DIFFERS" and location.startswith(first)
    earlier = list(QUANTITIES)[: list(QUANTITIES).index(quantity)]
    if quantity == "attention":
        earlier.remove("hidden states")  # those of the same layer also differ
    assert all(rows[name][2] == "ok" for name in earlier)
    assert verdict.startswith("NOT equal in ")
    assert verdict.endswith(f"first: {quantity}, {location}")


def test_the_fused_attention_is_verified_separately(run, monkeypatch):
    monkeypatch.setattr(kernels, "cpu_attention", lambda *a: 1.001 * FUSED(*a))
    code, rows, _ = run()
    assert code == 1
    assert rows["hidden states"][3] == "layer 0 (fused attention), question 'b'"
    assert rows["attention"][2] == "ok"


def test_answers_that_tie_count_as_equal(run, monkeypatch):
    def tied(self: Any, examples: Any) -> Iterator[Prediction]:
        for prediction in ANSWER(self, examples):
            yield Prediction(prediction.id, "another", prediction.answers, "another", None)

    monkeypatch.setattr(verification.QuestionAnswerer, "answer", tied)
    assert run()[0] == 0


def test_a_smaller_bound_is_passed(run, checkpoint):
    code, rows, _ = run(checkpoint, "--bound", 1e-9)
    assert code == 1 and rows["gradients"][1] == "1e-08"
    assert {name for name, row in rows.items() if row[2] == "ok"} == {
        "token ids", "weights", "answers",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs", "share"),
    [
        ([100.0, 1e-9], [100.0, 0.5], 0.005),  # relative to the largest value of the tensor
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1e-30, 0.0], [0.0, 0.0], math.inf),
        ([math.nan, 1.0], [1.0, 1.0], math.inf),
        ([math.inf, 1.0], [math.inf, 1.0], math.inf),
        ([1.0, 1.0], [math.nan, 1.0], math.inf),
    ],
)
def test_a_difference_is_relative_to_the_largest_value(ours, theirs, share):
    row = Row("q", bound=1e9)
    row.see(torch.tensor(ours), torch.tensor(theirs), "there")
    row.see(torch.ones(1), torch.ones(1), "elsewhere")
    assert row.largest == pytest.approx(share)
    assert row.first == ("there" if share == math.inf else "")


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        (["--bound", 0], "--bound must be finite and above 0, got 0.0"),
        (["--bound", "nan"], "--bound must be finite and above 0, got nan"),
        (["--max_samples", 0], "--max_samples must be at least 1, got 0"),
        (["--max_seq_length", 385], "384 positions"),
        (["--input", "absent.json"], "absent.json: must be an existing file"),
        (["--markdown", Path(__file__).parent], "equivalence: must be a file, got a folder"),
        (["--markdown", f"{__file__}/x.md"], "test_verify.py must be a folder, got a file"),
    ],
)
def test_bad_flags(checkpoint, flags, printed, capsys):
    assert call(checkpoint, *flags) == 2
    captured = capsys.readouterr()
    assert printed in captured.err and captured.err.count("\n") == 1 and not captured.out


def closed(patch: pytest.MonkeyPatch) -> None:
    class Closed:
        def __getattr__(self, name: str) -> Any:
            raise ValueError("no such model")

    patch.setattr(verification, "import_transformers", Closed)


@pytest.mark.parametrize(
    ("prepare", "printed"),
    [
        (
            lambda patch: patch.setitem(sys.modules, "transformers", None),
            'pip install "transformers>=5.0"',
        ),
        (closed, "transformers cannot load"),
    ],
    ids=["not installed", "closed"],
)
def test_without_transformers(checkpoint, monkeypatch, capsys, prepare, printed):
    prepare(monkeypatch)
    assert call(checkpoint) == 2
    assert printed in capsys.readouterr().err


def test_their_tokenizer_fails(checkpoint, monkeypatch, capsys):
    def fail(*arguments: object, **settings: object) -> None:
        raise NotImplementedError("no offsets here.\nThere are none.")

    monkeypatch.setattr(TheirTokenizer, "__call__", fail)
    assert call(checkpoint) == 2
    printed = capsys.readouterr().err
    assert "NotImplementedError: no offsets here)" in printed and printed.count("\n") == 1
