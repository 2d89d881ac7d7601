"""bertqa release: half precision, and a card with the metrics of the released model."""

import hashlib
import json
import re
import shlex
import shutil
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.calibration import read_calibration
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.answering.evaluation import score
from bertqa.answering.metrics import f1
from bertqa.commands import release, train
from bertqa.commands.flags import run_script
from bertqa.data.readers import read_examples
from bertqa.data.squad import data_fingerprint
from bertqa.errors import UserError
from bertqa.report import card as cards
from bertqa.settings import WindowSettings
from tests.helpers import DATA, STORIES, STORIES_V2, write_checkpoint

TEXTS = ["--encoder", "Tiny <BERT> (Apache-2.0)", "--data", "stories (CC0)"]
CALIBRATION = {"decoding.json", "calibration.json", "calibration.svg"}
FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}


def trained(folder: Path, source: Path = STORIES, *more: object) -> Path:
    """Run train.py for a few steps."""
    flags = [
        "--model", write_checkpoint(folder.parent / "tiny"), "--train_file", source,
        "--max_seq_length", 96, "--doc_stride", 16, "--max_query_length", 24, "--max_steps", 6,
        "--eval_steps", 3, "--logging_steps", 2, "--device", "cpu", "--precision", "fp32",
        "--output_dir", folder, *more,
    ]  # fmt: skip
    arguments = list(map(str, flags))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *arguments])  # recorded in run.json
        assert run_script(train.main, train.parse_flags(arguments)) == 0
    return folder


def released(run: Path, output: Path, *eval_files: Path) -> int:
    flags = [run, "--output_dir", output, *TEXTS, "--eval_file", *(eval_files or [STORIES])]
    return run_script(release.main, release.parse_flags(list(map(str, flags))))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    split = ("--validation_split_percentage", 30)
    return trained(tmp_path_factory.mktemp("runs") / "run", STORIES, *split)


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny-stories"
    assert released(run, path) == 0
    return path


def test_the_released_model_is_in_half_precision(run: Path, folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == FILES | CALIBRATION | {"loss.svg", "accuracy.svg"}
    whole, half = (load_file(path / "model.safetensors") for path in (run, folder))
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    assert whole.keys() == half.keys()
    assert all(torch.equal(whole[name].half(), half[name]) for name in whole)


def test_the_card_has_the_metrics_of_the_released_model(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    examples = read_examples(STORIES)
    qa = QuestionAnswerer.from_pretrained(folder, windows=WindowSettings(96, 16, 24))
    predictions = list(qa.answer(examples))
    metrics = score(examples, predictions, qa.decoding)
    assert f"**EM {metrics['exact_match']:.2f}, F1 {metrics['f1']:.2f}** on 174 questions" in card
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert f"SHA-256 `{digest}`" in card
    rows = re.findall(r"^\| question \| ([\w ]+) \| (\d+) \|", card, re.MULTILINE)
    assert sum(int(count) for _, count in rows) == len(examples)
    assert {"who", "what", "how many"} <= {name for name, _ in rows}
    wrong = {
        p.id: p.answers[0].probability
        for e, p in zip(examples, predictions, strict=True)
        if not any(f1(p.text, gold) for gold in e.answers)
    }
    assert f"- {len(wrong)} of 174 answers share no word with a gold answer;" in card
    value = r"([\d.]+) \(([\d.]+) to ([\d.]+)\)"
    (row,) = re.findall(rf"^\| stories\.json \| 174 \| {value} \| {value} \|$", card, re.MULTILINE)
    for mean, low, high in (map(float, row[:3]), map(float, row[3:])):
        assert low <= mean <= high
    (surest,) = re.findall(r"; those to (.+) \(ids in .*\) have the highest probability", card)
    assert surest.split(", ") == sorted(wrong, key=wrong.__getitem__, reverse=True)[:5]


def test_the_card_has_the_training_run(run: Path, folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert card.startswith("# tiny-stories\n")
    assert "Tiny <BERT> (Apache-2.0)" in card and "stories (CC0)" in card
    assert (
        "\npython train.py --model ENCODER --train_file stories.json --max_seq_length 96 "
        "--doc_stride 16 --max_query_length 24 --max_steps 6 --eval_steps 3 --logging_steps 2 "
        "--device cpu --precision fp32 --output_dir RUN --validation_split_percentage 30\n"
    ) in card
    assert re.search(
        r"\n- 6 steps of 16 windows \([\d.]+ epochs\) in float32, [\d.]+ s without evaluations, "
        r"[\d,]+ tokens/s(, kept: step 3)?, the last logged loss( until then)? \d+\.\d{3}\n"
        r"- machine: .+, \d+ cores, \d+ threads?; cpu, 1 process\n",
        card,
    )
    commit = json.loads((run / "run.json").read_text())["git_commit"]
    assert (
        f"- commit: {f'`{commit}`' if commit else 'unknown'}\n" in card
        and f"torch {torch.__version__}" in card
    )
    for setting in ("max_steps | 6", "doc_stride | 16", "dropout | None"):
        assert f"\n| {setting} |\n" in card
    assert "not those of stories.json: the figures cannot be compared." in card
    assert str(run.parent) not in card


def test_the_card_of_a_run_without_a_commit(copied: Path, tmp_path: Path) -> None:
    """bertqa was installed, not a repository."""
    description = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps(description | {"git_commit": None}))
    assert released(copied, tmp_path / "out") == 0
    assert "\n- commit: unknown\n" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_has_the_calibration(run: Path, folder: Path) -> None:
    card, found = (folder / "README.md").read_text(), read_calibration(run)
    assert found and read_decoding_file(folder)[1].temperature == found.temperature
    assert f"by the temperature {found.temperature:.3f} before" in card
    assert f"is {found.before.ece:.4f} without it, {found.after.ece:.4f} with it" in card
    assert "](calibration.svg)" in card
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ", card, re.MULTILINE)
    assert rows == [(f"{p.threshold}", f"{100 * p.answered:.1f}") for p in found.after.coverage]


def test_the_curves_match_the_log(run: Path, folder: Path) -> None:
    card = (folder / "README.md").read_text()
    log = [json.loads(line) for line in (run / "log.jsonl").open()]
    for name, key in (("loss.svg", "loss"), ("accuracy.svg", "f1")):
        assert f"]({name})" in card
        lines = ET.fromstring((folder / name).read_text()).iter(
            "{http://www.w3.org/2000/svg}polyline"
        )
        assert len(next(iter(lines)).attrib["points"].split()) == sum(key in line for line in log)


def test_a_model_with_no_answer_is_released_with_its_threshold(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", STORIES_V2, "--version_2_with_negative")
    shutil.copyfile(DATA / "version-0.1" / "run" / "threshold.svg", run / "threshold.svg")
    examples = json.loads(STORIES_V2.read_text())
    examples["data"] = examples["data"][:-1]  # not the training questions
    (tmp_path / "asked.json").write_text(json.dumps(examples))
    assert released(run, tmp_path / "new", tmp_path / "asked.json", STORIES) == 0
    assert read_decoding_file(tmp_path / "new") == read_decoding_file(run)
    card = (tmp_path / "new" / "README.md").read_text()
    assert 'answers "no answer" if the null score exceeds the threshold' in card
    assert "](threshold.svg)" in card and "--version_2_with_negative" in card
    windows, decoding = WindowSettings(96, 16, 24), read_decoding_file(tmp_path / "new")[1]
    qa = QuestionAnswerer.from_pretrained(tmp_path / "new", windows=windows)
    asked = read_examples(tmp_path / "asked.json")
    figures = score(asked, list(qa.answer(asked)), decoding)
    for kind, prefix in (("", ""), (", answerable", "HasAns_"), (", unanswerable", "NoAns_")):
        assert (
            f"| asked.json{kind} | {figures[f'{prefix}total']:.0f} | "
            f"{figures[f'{prefix}exact']:.2f} ("
        ) in card
        assert f" | {figures[f'{prefix}f1']:.2f} (" in card
    # Every question of the second file has an answer: "no answer" is excluded.
    qa.decoding = replace(qa.decoding, version_2_with_negative=False)
    examples = read_examples(STORIES)
    forced = score(examples, list(qa.answer(examples)), qa.decoding)
    figures = f"EM {forced['exact_match']:.2f}, F1 {forced['f1']:.2f}"
    assert re.search(
        rf"- stories\.json: \*\*{figures}\*\* on 174 questions, in \w+, with a span for every "
        r'question \("no answer" excluded\)\n',
        card,
    )
    assert "By group, on asked.json:" in card and "By group, on stories.json:" in card


def test_a_folder_without_a_run_is_released_with_its_metrics(run: Path, tmp_path: Path) -> None:
    model = shutil.copytree(run, tmp_path / "model", ignore=shutil.ignore_patterns("run.json"))
    assert released(model, tmp_path / "new") == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == FILES | CALIBRATION
    card = (tmp_path / "new" / "README.md").read_text()
    assert "no record of the training" in card and "train.py" not in card
    assert "| question | who |" in card


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """Return a copy of the run."""
    return shutil.copytree(run, tmp_path / "run")


def change_description(run: Path, **changes: object) -> None:
    description = json.loads((run / "run.json").read_text())
    data = description["data"] | changes.pop("data", {})
    (run / "run.json").write_text(json.dumps(description | {"data": data} | changes))


def test_the_card_tells_if_the_eval_file_chose_the_best_step(copied: Path, tmp_path: Path) -> None:
    """Then the metrics of the curve are on the same questions."""
    change_description(copied, data={"validation": data_fingerprint(read_examples(STORIES))})
    assert released(copied, tmp_path / "new") == 0
    card = (tmp_path / "new" / "README.md").read_text()
    assert "which also chose the best step of the run" in card and "cannot be compared" not in card


@pytest.mark.parametrize("flag", ["--encoder", "--data"])
def test_the_texts_of_the_card_are_not_blank(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    output = ["--output_dir", tmp_path / "new", "--eval_file", STORIES]
    flags = [copied, *TEXTS, *output, flag, " "]
    assert run_script(release.main, release.parse_flags(list(map(str, flags)))) == 2
    assert f"{flag}: must have a visible character, got ' '" in capsys.readouterr().err
    assert released(tmp_path / "none", tmp_path / "new") == 2
    assert "none: must be an existing folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "eval_files", "words"),
    [
        (".", [STORIES], "--output_dir: must be a new folder"),
        ("new", [STORIES_V2], "--eval_file: every question must have an answer"),
        ("new", [STORIES], "--eval_file: must not contain the training questions"),
        ("new", [STORIES_V2, Path("b", STORIES_V2.name)], "must have different names"),
    ],
)
def test_invalid_releases_are_rejected(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    output: str, eval_files: list[Path], words: str,
) -> None:  # fmt: skip
    change_description(copied, data={"train": data_fingerprint(read_examples(STORIES))})
    assert released(copied, tmp_path / output, *eval_files) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [copied]


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
def test_the_card_has_a_command_that_runs(
    copied: Path, program: list[str], processes: int, shown: str
) -> None:
    given = [
        "--model", "/home/me/base", "--teacher", "/home/me/one", "minilm-l6-squad",
        "--train-file=/data/a.json", "--resume", "--seed", "7",
    ]  # fmt: skip
    change_description(copied, command=[*program, *given], processes=processes)
    flags = "--model ENCODER --teacher TEACHER minilm-l6-squad --train-file=a.json --seed 7"
    assert cards.read_run(copied)["command"] == f"{shown} {flags}"
    assert train.parse_flags(shlex.split(flags)).train_file == Path("a.json")


def test_ids_are_escaped_for_markdown() -> None:
    assert cards._literal("a-1.b *x* | <b>`c`\n") == r"a-1.b \*x\* \| \<b\>\`c\`\\n"


def test_a_log_with_only_f1_is_drawn(tmp_path: Path) -> None:
    log = [{"step": 1, "f1": 50.0}, {"step": 2, "f1": 60.0}]
    assert cards.write_curves(tmp_path, log) == ["accuracy.svg"]


def test_the_card_has_the_loss_of_the_kept_step(copied: Path) -> None:
    """The card has the loss of the step whose model was kept."""
    log: list[dict[str, Any]] = [
        {"step": 2, "epoch": 0.1, "loss": 7.0, "tokens_per_second": 90},
        {"step": 3, "epoch": 0.2, "f1": 50.0},
        {"step": 4, "epoch": 0.3, "loss": 5.0, "tokens_per_second": 70, "seconds": 60.0},
        {"step": 4, "epoch": 0.3, "f1": 50.0},
    ]
    found = []
    for part in (log, log[:1] + log[2:], log[2:]):
        (copied / "log.jsonl").write_text("\n".join(map(json.dumps, part)))
        found.append(cards.read_run(copied))
    assert [(part["kept"], part["steps"], part["loss"]) for part in found] == [
        (3, 4, 7.0), (4, 4, 5.0), (4, 4, 5.0),
    ]  # fmt: skip
    assert [part["seconds"] for part in found] == [None, None, 60.0]  # None if any line lacks it
    assert found[0]["rate"] == 70


def test_a_log_with_an_incomplete_last_line_is_read(run: Path, copied: Path) -> None:
    """An incomplete last line is ignored; any other is an error."""
    log = (run / "log.jsonl").read_text()
    (copied / "log.jsonl").write_text(log + '{"step": 9, "lo')
    assert cards.read_run(copied) == cards.read_run(run)
    for faulty in ('{"step": 9, "lo\n' + log, "", "3\n", "{}\n"):
        (copied / "log.jsonl").write_text(faulty)
        with pytest.raises(UserError, match=r"log\.jsonl(: must be as|, line 1: must be).* bertqa"):
            cards.read_run(copied)


def test_a_run_of_version_0_1_is_read() -> None:
    found = cards.read_run(DATA / "version-0.1" / "run")
    assert found is not None
    assert (found["steps"], found["kept"], found["windows"].doc_stride) == (21, 10, 8)
    assert found["command"].startswith("python train.py --model encoder --train_file questions")
