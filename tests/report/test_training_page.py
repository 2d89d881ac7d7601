"""report.html: curves, evaluations, newly correct and wrong answers, and escaping."""

from pathlib import Path

import pytest

from bertqa.answering.answers import Prediction
from bertqa.answering.evaluation import write_predictions
from bertqa.data.squad import Example
from bertqa.report.analysis import breakdown
from bertqa.report.training_page import (
    Answered,
    format_duration,
    report_page,
    run_figures,
    write_report,
)
from bertqa.settings import DecodingSettings
from bertqa.training.run_folder import RunFolder
from tests.helpers import Page

DESCRIPTION = {
    "settings": {"seed": 42, "model": "<tiny>"},
    "data": {"train": "0123"},
    "versions": {"torch": "2"},
    "git_commit": "abc",
}
LOG = [
    {"step": 5, "epoch": 0.5, "loss": 9.0, "learning_rate": 3e-5, "tokens_per_second": 900},
    {"step": 10, "epoch": 1.0, "loss": 5.0, "learning_rate": 2e-5, "tokens_per_second": 700},
    {
        "step": 10, "epoch": 1.0, "training_loss": 7.0, "validation_loss": 6.0,
        "exact_match": 25.0, "f1": 40.0,
    },
    {"step": 15, "epoch": 1.5, "loss": 4.0, "learning_rate": 1e-5, "tokens_per_second": 800},
    {
        "step": 20, "epoch": 2.0, "training_loss": 4.5, "validation_loss": 6.5,
        "exact_match": 50.0, "f1": 35.0,
    },
]  # fmt: skip
CONTEXT = "Ada built the quay in 1642. Ben swept it."
EXAMPLES = [
    Example("a", "Who built <b>it</b>?", CONTEXT, ("Ada",), (0,)),
    Example("b", "When was it built?", CONTEXT, ("1642",), (22,)),
    Example("c", "Who swept it? \u202e", CONTEXT, ("Ben",), (28,)),
    Example("d</script>", "What was swept?", CONTEXT, ("the quay",), (10,)),
]
BEFORE = {"a": "Ada", "b": "quay", "c": "Ada", "d</script>": "quay"}
NOW = {"a": "Ben", "b": "1642", "c": "the Ben", "d</script>": "quay"}
ANSWERED = Answered(EXAMPLES, 20, NOW, 10, BEFORE)


def shown(answered: Answered | None = ANSWERED, log: object = LOG) -> Page:
    return Page(report_page("runs/<x>", DESCRIPTION, log, answered))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ([1.24, 2.0, 0.11], "3.4 s"),
        ([59.96], "1 min 00 s"),
        ([100, 600.4, 59], "12 min 39 s"),
        ([3599.6], "1 h 00 min"),
        ([3600, 4109], "2 h 08 min"),
    ],
)
def test_the_training_time(seconds: list[float], text: str) -> None:
    log = [{"step": i, "loss": 2.0, "seconds": each} for i, each in enumerate(seconds)]
    measured = {"step": 9, "training_loss": 7.0}
    assert format_duration(run_figures([*log, measured])["seconds"]) == text
    assert any(text in part for part in shown(log=[line | LOG[0] for line in log]).texts)
    assert run_figures([*log, {"step": 9, "loss": 7.0}])["seconds"] is None


def test_the_page_of_a_run() -> None:
    page = shown()
    text = "\n".join(page.texts)
    assert text.count("Loss, start + end") == text.count("Learning rate") == 1
    assert "Exact match and F1 on the validation questions, %" in text
    tables = [attributes for tag, attributes in page.seen if tag == "meter"]
    groups = breakdown(EXAMPLES, NOW)
    assert [float(each["value"] or "") for each in tables] == [
        pytest.approx(group.f1, abs=0.05) for group in groups
    ]
    assert not any("of training" in part for part in page.texts)  # the log has no seconds
    for word in ("5.0", "6.5000", "40.00", "35.00", "<tiny>", "runs/<x>", "0123", "abc"):
        assert any(word in part for part in page.texts), word
    assert text.count("kept") == 1
    index = page.texts.index("kept")
    assert "40.00" in page.texts[index - 3 : index]  # the row with the best F1


@pytest.mark.parametrize("is_last", [False, True])
def test_the_groups_are_those_of_the_kept_model(tmp_path: Path, is_last: bool) -> None:
    kept = NOW if is_last else BEFORE
    folder = RunFolder(tmp_path, DESCRIPTION)
    folder.open(0)
    for line in LOG:
        folder.append_log(line | {"f1": 90.0} if is_last and line["step"] == 20 else line)
    for step, answers in ((10, BEFORE), (20, NOW)):
        predictions = [Prediction(id_, text, (), text, None) for id_, text in answers.items()]
        folder.keep_answers(step, predictions)
        if answers is kept:
            write_predictions(tmp_path, predictions, DecodingSettings())
    write_report(tmp_path, EXAMPLES, v2=False)
    page = Page((tmp_path / "report.html").read_text())
    meters = [float(attributes["value"] or "") for tag, attributes in page.seen if tag == "meter"]
    assert meters == [pytest.approx(group.f1, abs=0.05) for group in breakdown(EXAMPLES, kept)]
    step = 20 if is_last else 10
    assert f"By question, at step {step}, whose model is kept." in page.texts
    assert "From step 10 to step 20" in page.texts


def test_newly_correct_and_newly_wrong_answers() -> None:
    texts = shown().texts
    assert "From step 10 to step 20" in texts
    assert "2 newly correct" in texts and "1 newly wrong" in texts
    correct, wrong = texts.index("2 newly correct"), texts.index("1 newly wrong")
    assert [name for name in ("a", "b", "c") if name in texts[correct:wrong]] == ["b", "c"]
    after = texts[wrong : texts.index("EM and F1 by group")]
    assert "a" in after and "b" not in after
    assert "Who built <b>it</b>?" in after


def test_hostile_data_is_escaped_everywhere() -> None:
    def hostile(name: str) -> str:
        return f"<b>&amp;\u202e\x07 {name}</script>"

    example = Example(hostile("id"), hostile("question"), CONTEXT, (hostile("gold"),), (0,))
    before, now = {example.id: hostile("before")}, {example.id: hostile("gold")}
    description = {
        "settings": {hostile("key"): hostile("value")},
        "device": hostile("device"),
    }
    answered = Answered([example], 20, now, 10, before)
    markup = report_page(hostile("name"), description, LOG, answered)
    page = Page(markup)
    assert not {tag for tag, _ in page.seen} & {"b", "script"}
    assert all(character.isprintable() or character == "\n" for character in markup)
    for name in ("id", "question", "gold", "before", "key", "value", "device", "name"):
        assert f"<b>&amp;\\u202e\\x07 {name}</script>" in "".join(page.texts)
    assert "http" not in markup.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_the_page_of_a_run_with_little_data() -> None:
    assert "Nothing was logged yet." in shown(None, []).texts
    first = shown(Answered(EXAMPLES, 10, BEFORE))
    assert not any("From step" in part for part in first.texts)
    without = shown(None, [line for line in LOG if "loss" in line])
    assert "Evaluations" not in without.texts and "Learning rate" in without.texts


def test_the_page_is_written_from_a_run_folder(tmp_path: Path) -> None:
    """The answers of two evaluations are kept; a resumed run drops those of later steps."""
    folder = RunFolder(tmp_path / "run", DESCRIPTION)
    folder.open(0)
    for step, answers in ((5, BEFORE), (10, BEFORE), (20, NOW)):
        folder.append_log({"step": step, "loss": 1.0})
        predictions = [Prediction(id_, text, (), text, None) for id_, text in answers.items()]
        folder.keep_answers(step, predictions)
    write_report(folder.path, EXAMPLES, v2=False)
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert "From step 10 to step 20" in page.texts and "2 newly correct" in page.texts
    names = sorted(path.name for path in (tmp_path / "run" / "evaluations").iterdir())
    assert names == ["step-00000010.json", "step-00000020.json"]
    with pytest.MonkeyPatch.context() as patch:  # our own files have no size limit
        patch.setattr("bertqa.training.run_folder.read_json_object.__defaults__", (4,))
        write_report(folder.path, EXAMPLES, v2=False)
    folder.open(12)
    assert [path.name for path in (tmp_path / "run" / "evaluations").iterdir()] == names[:1]
