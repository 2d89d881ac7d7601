"""A run becomes a folder to hand on: half precision, a card whose figures are the folder's own."""

import hashlib
import json
import re
import shlex
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.answering.evaluation import score
from bertqa.audit.repair import save_examples
from bertqa.commands import average, release, train
from bertqa.commands.flags import run_script
from bertqa.data.readers import read_examples
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from bertqa.model.checkpoint import load_checkpoint
from bertqa.report import average as means
from bertqa.report import card as cards
from bertqa.report.card import Stage, _command, read_stage, read_step
from bertqa.report.charts import Line
from bertqa.settings import WindowSettings
from tests.helpers import STORIES, STORIES_V2, write_checkpoint

TEXTS = ["--encoder", "Tiny <BERT> (Apache-2.0)", "--data", "stories (CC0)"]


def trained(
    folder: Path, model: Path, *more: object, split: bool = True, source: Path = STORIES
) -> Path:
    """A short run of train.py."""
    flags = [
        "--model", model, "--train_file", source, *["--validation_split_percentage", 30] * split,
        "--max_seq_length", 96, "--doc_stride", 16, "--max_query_length", 24, "--max_steps", 6,
        "--eval_steps", 3, "--logging_steps", 2, "--device", "cpu", "--precision", "fp32",
        "--output_dir", folder, *more,
    ]  # fmt: skip
    arguments = list(map(str, flags))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *arguments])  # what run.json tells
        assert run_script(train.main, train.parse_flags(arguments)) == 0
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


def test_a_run_that_branched_off(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = trained(tmp_path / "third", runs[0], "--seed", 8)
    steps = [read_step(run) for run in (*runs, third)]
    assert cards.starts_of([*runs, third], steps) == [[0], [1], [1]]
    description = steps[1].description | {"settings": {"model": "something else"}}
    renamed = steps[1]._replace(description=description)
    with pytest.raises(UserError, match=r"third started from first, which is not named before it"):
        cards.starts_of([runs[1], third], [renamed, steps[2]])
    drawn: list[list[Line]] = []
    monkeypatch.setattr(cards, "line_chart", lambda title, x, lines: drawn.append(lines) or "")
    cards.write_curves(tmp_path, steps, [[0], [1], [1]])
    losses, kept = drawn[0], steps[0].kept
    assert [line.name for line in losses] == ["runs 1, 2", "runs 1, 2", "run 3"]
    places = [[place for place, _ in line.points] for line in losses]
    on_top = [kept + 2, kept + 4, kept + 6]
    assert places == [[2, 4, 6], on_top, on_top]


def test_no_run_is_left_out_of_the_curves(
    family: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that branched off and their mean, as in ``family``, and four side by side from that."""
    steps = [read_step(run) for run in family]
    drawn: list[list[Line]] = []
    monkeypatch.setattr(cards, "line_chart", lambda title, x, lines: drawn.append(lines) or "")
    starts = [[0], [1], [1], [2, 3], [4], [4], [4], [4]]
    cards.write_curves(tmp_path, [*steps, *steps[-1:] * 3], starts)
    losses, scored = drawn
    first, second, third = "runs 1, 2, 5", "runs 3, 6", "runs 7, 8"
    assert [line.name for line in losses] == [
        first, first, second, first, second, third, third,
    ]  # fmt: skip
    assert [line.name for line in scored] == ["F1"] * 7 + ["exact match"] * 7
    begun = [line.points[0][0] - 2 for line in losses]
    assert begun == [
        0,
        *[steps[0].kept] * 2,
        *[steps[0].kept + max(s.kept for s in steps[1:3])] * 4,
    ]
    for line, loss in zip(scored, losses * 2, strict=False):
        assert [x for x, _ in line.points] == [loss.points[0][0] + 1, loss.points[0][0] + 4]


def test_names_of_many_runs_find_a_place(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [read_step(runs[0])] * 99
    drawn: list[list[Line]] = []
    monkeypatch.setattr(cards, "line_chart", lambda title, x, lines: drawn.append(lines) or "")
    cards.write_curves(tmp_path, steps, [[0]] * 99)
    names = [line.name for line in drawn[0]]
    assert names == ["run 1", "run 2", *["runs 3, 4, 5, 6, …"] * 97]
    pairs = [[number // 2] for number in range(99)]  # two from each
    cards.write_curves(tmp_path, steps, pairs)
    assert {line.name for line in drawn[2]} == {"runs 1, 3, 5, 7, …", "runs 2, 4, 6, 8, …"}


def test_a_run_whose_best_step_was_not_its_last(runs: list[Path]) -> None:
    """The loss on its line is that of the steps whose model was kept."""
    stage = read_step(runs[0])
    log = [
        {"step": 2, "epoch": 0.1, "loss": 7.0},
        {"step": 3, "epoch": 0.2, "f1": 50.0},
        {"step": 4, "epoch": 0.3, "loss": 5.0},
        {"step": 4, "epoch": 0.3, "f1": 40.0},
    ]
    line = cards._step_line(1, stage._replace(log=log), [0])
    assert ", kept: step 3, the last logged loss until then 7.000; commit" in line
    line = cards._step_line(1, stage._replace(log=log[:3]), [0])
    assert ", kept: step 3," in line
    line = cards._step_line(1, stage._replace(log=[*log[:1], *log[2:]]), [0])
    assert "kept" not in line and ", the last logged loss 5.000; commit" in line


def test_a_run_that_was_measured_on_other_questions(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another file, say: its loss is part of the curve, its F1 is not."""
    part = tmp_path / "part.json"
    save_examples(part, read_examples(STORIES)[:80])
    first = trained(tmp_path / "first", runs[0], source=part)
    steps = [read_step(run) for run in (first, trained(tmp_path / "second", first))]
    drawn: list[list[Line]] = []
    monkeypatch.setattr(cards, "line_chart", lambda title, x, lines: drawn.append(lines) or "")
    cards.write_curves(tmp_path, steps, [[0], [1]])
    losses, (f1, exact) = drawn
    kept = steps[0].kept
    places = [step for line in losses for step, _ in line.points]
    assert places == [2, 4, 6, kept + 2, kept + 4, kept + 6]
    assert [step for step, _ in f1.points] == [kept + 3, kept + 6]
    assert [step for step, _ in exact.points] == [kept + 3, kept + 6]


@pytest.mark.parametrize("last", [True, False])
def test_questions_that_a_run_was_chosen_by(runs: list[Path], tmp_path: Path, last: bool) -> None:
    """The card says so of any run; only the last run's are those of its curve."""
    part, tiny = tmp_path / "part.json", runs[0].parent / "tiny"
    save_examples(part, read_examples(STORIES)[:80])

    def chosen_by(here: bool, name: str, model: Path) -> Path:
        more = ["--validation_file", STORIES] * here
        return trained(tmp_path / name, model, *more, split=not here, source=part)

    steps = [chosen_by(not last, "first", tiny)]
    steps.append(chosen_by(last, "second", steps[0]))
    out = tmp_path / "out"
    assert released(*steps, "--output_dir", out, *TEXTS, "--eval_file", STORIES) == 0
    card = (out / "README.md").read_text()
    assert "which also chose the best step of the run" in card
    assert ("cannot be compared" in card) == (not last)


@pytest.fixture(scope="module")
def family(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that branched off from a first one, and their mean, on which a fifth goes on."""
    home = tmp_path_factory.mktemp("family")
    # Far enough from the others that another mean than theirs would be seen.
    third = trained(home / "third", runs[0], "--seed", 8, "--learning_rate", 1e-2)
    assert averaged(runs[1], third, "--output_dir", home / "mean") == 0
    return [*runs, third, home / "mean", trained(home / "fifth", home / "mean", "--seed", 9)]


def averaged(*arguments: object) -> int:
    return run_script(average.main, average.parse_flags(list(map(str, arguments))))


def test_the_mean_of_runs_is_a_model(family: list[Path]) -> None:
    mean, *parts = (load_file(run / "model.safetensors") for run in (family[3], *family[1:3]))
    for name, weights in mean.items():
        torch.testing.assert_close(weights, (parts[0][name] + parts[1][name]) / 2)
        assert not torch.equal(parts[0][name], parts[1][name]) or "position" in name
    three = means.mean_of(family[:3]).state_dict()
    weights = [load_checkpoint(run)[0].state_dict() for run in family[:3]]
    for name, value in three.items():
        torch.testing.assert_close(value, torch.stack([w[name] for w in weights]).mean(dim=0))
    by_hand = QuestionAnswerer(means.mean_of(family[1:3]), BertTokenizer.load(family[1]))
    asked = ("Who built it?", "Ada built it.")
    assert QuestionAnswerer.from_pretrained(family[3])(*asked) == by_hand(*asked)


def test_a_mean_is_handed_on_with_all_that_it_was_made_of(
    family: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "tiny-mean"
    assert released(*family[:4], "--output_dir", out, *TEXTS, "--eval_file", STORIES) == 0
    whole, half = (load_file(path / "model.safetensors") for path in (family[3], out))
    assert all(torch.equal(whole[name].half(), half[name]) for name in whole)
    card = (out / "README.md").read_text()
    assert "\nbertqa average runs/2 runs/3 --output_dir runs/4\n" in card
    assert "\n- 4: the mean of the weights of 2 and 3\n" in card
    assert card.count("A mean has no points") == 1
    assert "average.json" not in {path.name for path in out.iterdir()}


def test_a_run_that_went_on_from_a_mean(family: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "tiny-fifth"
    assert released(*family, "--output_dir", out, *TEXTS, "--eval_file", STORIES) == 0
    card = (out / "README.md").read_text()
    assert re.search(r"\npython train\.py --model runs/4 .*--output_dir runs/5 --seed 9\n", card)
    steps = [read_step(run) for run in family]
    assert cards.starts_of(family, steps) == [[0], [1], [1], [2, 3], [4]]
    with pytest.raises(UserError, match=r"mean is a mean with third, which is not named before"):
        cards.starts_of([*family[:2], family[3]], [*steps[:2], steps[3]])
    for started_from, run in ((0, 1), (3, 4)):  # a run, and a mean
        with pytest.raises(UserError, match=rf"{family[started_from]}: name that one before it"):
            cards.starts_of([family[run]], [steps[run]])


def test_two_runs_from_the_encoder(runs: list[Path], tmp_path: Path) -> None:
    encoder = read_step(runs[0]).description["settings"]["model"]
    another = trained(tmp_path / "another", Path(encoder), "--seed", 3)
    steps = [read_step(run) for run in (runs[0], another)]
    assert cards.starts_of([runs[0], another], steps) == [[0], [0]]


def test_what_has_no_mean(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = write_checkpoint(tmp_path / "wide", hidden_size=48)
    settled = tmp_path / "settled"
    shutil.copytree(runs[1], settled)
    (settled / "decoding.json").write_text("{}")
    for others, said in (
        ([], "alone has no mean: name two models or more"),
        ([wide], f"{wide} is not of the same shape and vocabulary as {runs[0]}"),
        ([settled], f"{settled / 'decoding.json'} says when this model alone"),
        ([runs[0]], f"two of the folders are called {runs[0].name!r}"),
        ([tmp_path / "nothing"], str(tmp_path / "nothing")),
    ):
        assert averaged(runs[0], *others, "--output_dir", tmp_path / "mean") == 2
        assert said in capsys.readouterr().err
    assert averaged(*runs, "--output_dir", tmp_path) == 2
    assert "is there already" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_the_card_tells_the_figures_of_the_file(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    examples = read_examples(STORIES)
    qa = QuestionAnswerer.from_pretrained(folder, windows=WindowSettings(96, 16, 24))
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
    same = (
        "--train_file stories.json --validation_split_percentage 30 --max_seq_length 96 "
        "--doc_stride 16 --max_query_length 24 --max_steps 6 --eval_steps 3 --logging_steps 2 "
        "--device cpu --precision fp32"
    )
    assert commands == [
        f"python train.py --model ENCODER {same} --output_dir runs/1 --learning_rate 0.001",
        f"python train.py --model runs/1 {same} --output_dir runs/2 --dropout 0 --seed 7",
    ]
    assert card.count("6 steps of 16 windows") == 2
    assert card.count("other ones than stories.json's: the figures cannot be compared.") == 1
    assert "A mean" not in card
    assert len(re.findall(r" in float32, [\d.]+ (?:min \d\d )?s, [\d,]+ tokens/s", card)) == 2
    commit = json.loads((runs[1] / "run.json").read_text())["git_commit"]
    assert f"commit `{commit}`" in card and f"torch {torch.__version__}" in card
    assert str(runs[0].parent) not in card


@pytest.mark.parametrize(
    ("program", "processes", "shown"),
    [
        (["train.py"], 1, "python train.py"),
        (["/home/me/bertqa/train.py"], 2, "torchrun --nproc_per_node=2 train.py"),
        (["/home/me/.venv/bin/bertqa", "train"], 1, "bertqa train"),
        (["/home/me/bertqa/bertqa/__main__.py", "train"], 1, "python -m bertqa train"),
        (
            ["/home/me/bertqa/bertqa/__main__.py", "train"], 2,
            "torchrun --nproc_per_node=2 -m bertqa train",
        ),
    ],
)  # fmt: skip
def test_the_card_shows_a_command_that_runs(program: list[str], processes: int, shown: str) -> None:
    given = ["--model", "/home/me/base", "--train-file=/data/a.json", "--resume", "--seed", "7"]
    run = Stage({"command": [*program, *given], "processes": processes}, [])
    flags = "--model ENCODER --train-file=a.json --seed 7"
    assert _command(1, run, [0]) == f"{shown} {flags}"
    parsed = shlex.split(flags)
    assert train.parse_flags(parsed).train_file == Path("a.json")


def test_the_curves_go_on_from_run_to_run(runs: list[Path], folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for name, points in (("loss.svg", 6), ("accuracy.svg", 4)):
        assert f"]({name})" in card
        root = ET.fromstring((folder / name).read_text())
        lines = [
            line.attrib["points"].split()
            for line in root.iter("{http://www.w3.org/2000/svg}polyline")
            if line.attrib["class"] == "s0"
        ]
        across = [float(point.split(",")[0]) for line in lines for point in line]
        assert [len(line) for line in lines] == [points / 2] * 2
    f1 = [
        [line for line in map(json.loads, (run / "log.jsonl").open()) if "f1" in line]
        for run in runs
    ]
    kept = max(f1[0], key=lambda line: line["f1"])["step"]
    assert read_stage(runs[0]).kept == kept
    assert across == sorted(across)


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
    assert "there is no run.json" in refusal(tmp_path, "--output_dir", new, "--eval_file", STORIES)
    unanswered = refusal(runs[0], "--output_dir", new, "--eval_file", STORIES_V2)
    assert "questions without an answer" in unanswered
    assert "name that one before it" in refusal(
        *runs[::-1], "--output_dir", new, "--eval_file", STORIES
    )
    assert not new.exists()


def test_a_run_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"run\.json is not one that bertqa train writes"):
        read_stage(tmp_path)


@pytest.mark.parametrize("log", ["", "3\n", "{}\n", None])
def test_a_run_without_a_step_is_refused(runs: list[Path], tmp_path: Path, log: str | None) -> None:
    (tmp_path / "run.json").write_bytes((runs[0] / "run.json").read_bytes())
    if log is not None:
        (tmp_path / "log.jsonl").write_text(log)
    with pytest.raises(UserError, match="name a run that has trained"):
        read_stage(tmp_path)


def test_half_a_last_line_is_that_of_a_run_that_was_killed(
    runs: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_bytes((runs[0] / "run.json").read_bytes())
    log = (runs[0] / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(log + '{"step": 9, "lo')
    assert read_stage(tmp_path).log == read_stage(runs[0]).log
    (tmp_path / "log.jsonl").write_text('{"step": 9, "lo\n' + log)
    with pytest.raises(UserError, match=r"log\.jsonl, line 1 is not JSON"):
        read_stage(tmp_path)


def test_what_the_model_was_trained_on_measures_nothing(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        whole = trained(tmp_path / "whole", runs[0], "--learning_rate", 1e-3, split=False)
    flags = ["--output_dir", tmp_path / "new", *TEXTS, "--eval_file", STORIES]
    assert released(runs[0], whole, *flags) == 2
    assert "is what the model was trained on" in capsys.readouterr().err


def test_a_model_that_says_no_answer_is_handed_on_with_its_threshold(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        model = write_checkpoint(tmp_path / "tiny")
        run = trained(tmp_path / "run", model, "--version_2_with_negative", source=STORIES_V2)
    folder = tmp_path / "new"
    assert released(run, "--output_dir", folder, *TEXTS, "--eval_file", STORIES_V2) == 0
    assert read_decoding_file(folder) == read_decoding_file(run)
    assert (folder / "threshold.json").exists()
    card = (folder / "README.md").read_text()
    assert 'says "no answer" from the null score in decoding.json on' in card
    assert "](threshold.svg)" in card and "--version_2_with_negative" in card
