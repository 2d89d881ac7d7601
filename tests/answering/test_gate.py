"""250 questions of many kinds, written for this project: their validity, and the metrics of the
shipped model on the 200 answerable ones."""

import hashlib
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from bertqa import QuestionAnswerer
from bertqa.answering.evaluation import score
from bertqa.commands import infer
from bertqa.data.readers import read_examples
from bertqa.data.squad import check_answers, check_examples
from bertqa.errors import UserError
from bertqa.files import WEIGHTS_FILE
from bertqa.model import hub
from bertqa.model.cpu_inference import can_prepack
from bertqa.model.hub import SHIPPED_MODEL, find_folder
from bertqa.runtime import select_precision
from tests.helpers import DATA

GATE = DATA / "gate.json"


def test_the_questions_are_valid() -> None:
    examples = read_examples(GATE)
    check_examples(examples, str(GATE))  # no id twice, nothing blank
    check_answers(examples, str(GATE))  # every answer is at its answer_start
    assert len(examples) == 250
    assert len({(example.question, example.context) for example in examples}) == 250
    assert sum(bool(example.answers) for example in examples) == 200
    for example in examples:
        assert example.is_impossible == example.id.startswith("none-")
        assert all(text == text.strip() != "" for text in example.answers or ())


def test_each_context_has_a_plausible_wrong_answer() -> None:
    articles = json.loads(GATE.read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    assert len(paragraphs) == 50
    for paragraph in paragraphs:
        (unanswerable,) = (qa for qa in paragraph["qas"] if qa.get("is_impossible"))
        (plausible,) = unanswerable["plausible_answers"]
        assert paragraph["context"].startswith(plausible["text"], plausible["answer_start"])


def test_the_questions_are_of_many_kinds() -> None:
    examples = read_examples(GATE)
    kinds = Counter(example.id.rsplit("-", 1)[0] for example in examples)
    assert kinds.keys() == {
        "who", "when", "date", "how-many", "how-much", "why", "where", "what", "which", "how",
        "name", "distractor", "long", "seam", "none",
    }  # fmt: skip
    assert min(kinds.values()) >= 6
    words = [len(context.split()) for context in {example.context for example in examples}]
    assert min(words) < 110 and sum(count > 600 for count in words) >= 5


# --- the shipped model ---------------------------------------------------------------------------

# EM and F1 on the 200 answerable questions, in percent, measured at its release on a processor with
# bf16 products; the model has no "no answer". One question is 0.5 of EM: rounding on another
# processor may change one answer; more means that the code has changed.
MEASURED = {"fp32": (75.0, 81.0), "bf16": (75.5, 81.5), "int8": (77.0, 82.38)}
ONE_QUESTION = 0.5


@pytest.fixture(scope="module")
def shipped() -> Path:
    return find_folder(SHIPPED_MODEL)


@pytest.mark.parametrize("precision", MEASURED)
def test_the_shipped_model_has_its_recorded_metrics(shipped: Path, precision: str) -> None:
    cpu = torch.device("cpu")
    if precision != "fp32" and select_precision("auto", cpu) is not torch.bfloat16:
        pytest.skip("this processor has no bf16 products")  # int8 uses them for other layers
    if precision == "int8" and not can_prepack(cpu, int8=True):
        pytest.skip("this processor has no 8-bit products")
    examples = [example for example in read_examples(GATE) if not example.is_impossible]
    qa = QuestionAnswerer.from_pretrained(shipped, device="cpu", precision=precision)
    figures = score(examples, list(qa.answer(examples)), qa.decoding)
    exact, f1 = MEASURED[precision]
    # With coarser rounding, one more answer may change.
    slack = ONE_QUESTION * (1 if precision == "fp32" else 2)
    assert figures["exact_match"] == pytest.approx(exact, abs=slack + 0.01)
    assert figures["f1"] == pytest.approx(f1, abs=slack + 0.01)


def test_the_demo_is_answered_correctly(capsys: pytest.CaptureFixture[str]) -> None:
    infer.main(infer.parse_flags(["--demo", "--device", "cpu", "--precision", "fp32"]))
    lines = capsys.readouterr().out.splitlines()
    answers = [line.split(maxsplit=2)[2] for line in lines if re.match(r" +[01]\.\d{4} ", line)]
    assert answers[:4] == [
        "32+", "general-purpose architectures", "TensorFlow 2.0 and PyTorch", "George Washington",
    ]  # fmt: skip
    assert len(answers) == 8  # five of them are the last question's n-best list


def test_the_card_has_the_digest_of_the_weights(shipped: Path) -> None:
    card = (shipped / "README.md").read_text(encoding="utf-8")
    digest = hashlib.sha256((shipped / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert f"SHA-256 `{digest}`" in card
    assert "CC BY-SA 4.0" in card and "Apache-2.0" in card
    assert (shipped / WEIGHTS_FILE).stat().st_size < 50e6


def test_readme_and_card_have_the_same_metrics(shipped: Path) -> None:
    root = Path(__file__).parents[2]
    card = (shipped / "README.md").read_text(encoding="utf-8")
    (figures,) = re.findall(r"\*\*EM ([\d.]+), F1 ([\d.]+)\*\*", card)
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert "| {} | {} |".format(*figures) in readme
    page = (root / "docs" / "accuracy.md").read_text(encoding="utf-8")
    assert "EM {} and F1 {} in bf16".format(*MEASURED["bf16"]) in " ".join(page.split())


def test_an_installed_package_finds_the_shipped_model(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path.resolve() / "site" / "bertqa"
    monkeypatch.setattr(hub, "__file__", str(package / "model" / "hub.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{SHIPPED_MODEL} must be in .* clone the"):
        find_folder(SHIPPED_MODEL)
    shutil.copytree(shipped, package / "pretrained" / SHIPPED_MODEL)
    assert find_folder(SHIPPED_MODEL) == package / "pretrained" / SHIPPED_MODEL
    shutil.copytree(shipped, tmp_path / "weights" / SHIPPED_MODEL)  # the user's model comes first
    assert find_folder(SHIPPED_MODEL) == Path("weights") / SHIPPED_MODEL


def test_the_shipped_files_are_listed_one_by_one(shipped: Path) -> None:
    """So other files of the folder are not committed or packaged."""
    root = Path(__file__).parents[2]
    rules = (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    start = f"!weights/{shipped.name}/"
    kept = {rule.removeprefix(start) for rule in rules if rule.startswith(start) and rule != start}
    packed = re.findall(f'"{shipped.name}/(.+)"', (root / "pyproject.toml").read_text("utf-8"))
    assert kept == set(packed) <= {path.name for path in shipped.iterdir()}
