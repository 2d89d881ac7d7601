"""A run becomes a folder to hand on: half precision, a card whose figures are the folder's own."""

import hashlib
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file

import train
from bertqa import release
from bertqa.answering import QuestionAnswerer
from bertqa.cli import run_script
from bertqa.evaluation import score
from bertqa.readers import read_examples
from bertqa.release import smoothed
from tests.helpers import STORIES, STORIES_V2, write_checkpoint

TEXTS = ["--encoder", "Tiny <BERT> (Apache-2.0)", "--data", "stories (CC0)"]


def trained(folder: Path, model: Path, *more: object) -> Path:
    """A short run of train.py."""
    flags = [
        "--model", model, "--train_file", STORIES, "--validation_split_percentage", 30,
        "--max_seq_length", 96, "--doc_stride", 16, "--max_query_length", 24, "--max_steps", 6,
        "--eval_steps", 3, "--logging_steps", 2, "--device", "cpu", "--precision", "fp32",
        "--output_dir", folder, *more,
    ]  # fmt: skip
    assert run_script(train.main, train.parse_flags(list(map(str, flags)))) == 0
    return folder


def released(*arguments: object) -> int:
    return run_script(release.main, release.parse_flags(list(map(str, arguments))))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs, the second from the model of the first."""
    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "cache")
        first = trained(home / "first", write_checkpoint(home / "tiny"), "--learning_rate", 1e-3)
        return [first, trained(home / "second", first, "--dropout", 0, "--seed", 7)]


@pytest.fixture(scope="module")
def folder(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny-stories"
    assert released(*runs, "--output_dir", path, *TEXTS, "--eval_file", STORIES) == 0
    return path


def test_the_folder_holds_the_last_run_in_half_precision(runs: list[Path], folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "README.md", "loss.svg", "accuracy.svg",
    }  # fmt: skip
    whole, half = (load_file(path / "model.safetensors") for path in (runs[1], folder))
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    assert whole.keys() == half.keys()
    assert all(torch.equal(whole[name].half(), half[name]) for name in whole)


def test_the_card_tells_the_figures_of_the_file(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    examples = read_examples(STORIES)
    qa = QuestionAnswerer.from_pretrained(folder)
    metrics = score(examples, list(qa.answer(examples)), qa.decoding)
    assert f"**EM {metrics['exact_match']:.2f}, F1 {metrics['f1']:.2f}** on 174 questions" in card
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert f"SHA-256 `{digest}`" in card
    rows = re.findall(r"^\| question \| ([\w ]+) \| (\d+) \|", card, re.MULTILINE)
    assert sum(int(count) for _, count in rows) == len(examples)
    assert {"who", "what", "how many"} <= {name for name, _ in rows}


def test_the_card_tells_how_it_was_trained(runs: list[Path], folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert card.startswith("# tiny-stories\n")
    assert "Tiny <BERT> (Apache-2.0)" in card and "stories (CC0)" in card
    commands = re.findall(r"^python train.py .*$", card, re.MULTILINE)
    assert [re.sub(r"--(?:eval|logging|max)_steps \d ?", "", c).strip() for c in commands] == [
        "python train.py --model ENCODER --train_file TRAIN --output_dir runs/1 "
        "--learning_rate 0.001",
        "python train.py --model runs/1 --train_file TRAIN --output_dir runs/2 --dropout 0 "
        "--seed 7",
    ]
    assert card.count("6 steps of 16 windows") == 2
    commit = json.loads((runs[1] / "run.json").read_text())["git_commit"]
    assert f"Commit `{commit}`" in card and f"torch {torch.__version__}" in card
    assert str(runs[0].parent) not in card


def test_the_curves_go_on_from_run_to_run(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for name, points in (("loss.svg", 6), ("accuracy.svg", 4)):
        assert f"]({name})" in card
        root = ET.fromstring((folder / name).read_text())
        line = next(root.iter("{http://www.w3.org/2000/svg}polyline"))
        across = [float(point.split(",")[0]) for point in line.attrib["points"].split()]
        assert len(across) == points
        assert across == sorted(set(across))


def test_many_points_become_means() -> None:
    assert smoothed([(1, 4.0), (2, 2.0)]) == [(1, 4.0), (2, 2.0)]
    many = smoothed([(step, step % 2) for step in range(95)])
    assert many[0] == (9, 0.5) and many[-1][0] == 94 and len(many) == 10


def test_what_cannot_be_released(
    runs: list[Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*arguments: object) -> str:
        assert released(*arguments, *TEXTS) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    new = tmp_path / "new"
    there = refusal(runs[0], "--output_dir", folder, "--eval_file", STORIES)
    assert "tiny-stories is there already" in there
    assert "run.json is missing" in refusal(tmp_path, "--output_dir", new, "--eval_file", STORIES)
    unanswered = refusal(runs[0], "--output_dir", new, "--eval_file", STORIES_V2)
    assert "questions without an answer" in unanswered
    assert not new.exists()
