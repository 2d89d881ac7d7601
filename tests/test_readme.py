"""Snippets of README and docs are run, and their commands parsed."""

import ast
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path

import pytest

import bertqa
from bertqa.__main__ import COMMANDS
from bertqa.commands import infer
from bertqa.explain.explanation import Explanation
from bertqa.explain.hooks import Recording
from tests.helpers import STORIES, write_checkpoint

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
ELLIPSES = ("…", "...")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


# --- the first screen ----------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert lines.index("## Install") < 40 and len(lines) <= 150
    assert len(README.split()) <= 1400


def test_the_readme_counts_the_lines_of_the_core() -> None:
    found = re.findall(r"\]\((bertqa/\S+\.py)\)\s+in\s+(?:about\s+)?(\d+)", README)
    assert len(found) == 4
    for path, lines in found:
        assert abs(len(text_of(path).splitlines()) - int(lines)) <= 10, path


# --- Python --------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files used in the snippets."""
    for name in ("FOLDER", "ENCODER", "tokenizer"):
        write_checkpoint(tmp_path / name)
    (tmp_path / "mine.json").write_text(STORIES.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_snippets(document: str) -> dict[str, object]:
    """Run a document's snippets in order, and compare values with the comments below expressions.

    "..." in a comment matches anything.
    """
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", text_of(document), re.DOTALL):
        lines = code.splitlines()
        for node in ast.parse(code).body:
            source = ast.get_source_segment(code, node)
            comment = next(iter(lines[node.end_lineno :]), "")
            if isinstance(node, ast.Expr) and comment.startswith("# "):
                value = repr(eval(compile(source, document, "eval"), names))
                expected = comment.removeprefix("# ")
                assert OutputChecker().check_output(f"{expected}\n", f"{value}\n", ELLIPSIS), value
            else:
                exec(compile(source, document, "exec"), names)
    return names


@pytest.mark.parametrize("document", ["README.md", "docs/inference.md", "docs/migration.md"])
@pytest.mark.usefixtures("world")
def test_the_snippets_print_the_values_shown(document: str) -> None:
    assert "qa" in check_snippets(document)


def test_the_snippets_that_train_and_check(world: Path) -> None:
    (world / "mine.json").write_text(
        json.dumps({"data": json.loads((world / "mine.json").read_text())["data"][:2]})
    )
    check_snippets("docs/training.md")
    assert (world / "runs" / "mine" / "model.safetensors").exists()
    assert check_snippets("docs/data.md")["found"].windows.count  # type: ignore[attr-defined]


def test_the_snippets_that_look_inside(world: Path) -> None:
    names = check_snippets("docs/explain.md")
    explanation, seen = names["explanation"], names["seen"]
    assert isinstance(explanation, Explanation) and isinstance(seen, Recording)
    assert "Who built it?" in (world / "answer.html").read_text(encoding="utf-8")
    assert set(seen) == {"layers.2", "layers.2.attention.probabilities"}


def test_the_command_on_the_first_screen_prints_the_output_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, printed = re.findall(r"^python infer.py (.+)\n# (.+)$", README, re.MULTILINE)[0]
    infer.main(infer.parse_flags([*shlex.split(command), "--device", "cpu"]))
    score, *rest = capsys.readouterr().out.split()
    expected, *others = printed.split()
    assert rest == others and float(score) == pytest.approx(float(expected), abs=0.005)


# --- commands ------------------------------------------------------------------------------------


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the words of every bertqa command in a document, from the command's name on."""
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    for line in lines:
        for command in re.split(r"&&|;", line):
            words = words_of(command)
            if words:
                yield words


def words_of(command: str) -> list[str]:
    """Return a bertqa command and its flags; an empty list for another command."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:  # not a command: an apostrophe
        return []
    match re.sub(r"^\S*/", "", words[0]) if words else "":
        case "bertqa":
            return words[1:]
        case "python" | "torchrun":
            words = [word for word in words[1:] if not word.startswith("--nproc_per_node")]
    match words:
        case [("train.py" | "infer.py") as script, *flags]:
            return [script.removesuffix(".py"), *flags]
        case ["-m", "bertqa", *flags]:
            return flags
        case ["-m", module, *_] if module.startswith("bertqa."):
            return [module]
    return []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_is_valid(
    document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, *flags in commands_of(text_of(document)):
        if name == "COMMAND" or name.startswith("--"):
            continue
        assert name in COMMANDS
        given = [flag for flag in flags if flag not in ELLIPSES]
        is_whole = bool(given) and given == flags
        try:
            importlib.import_module(f"bertqa.commands.{name}").parse_flags(given)
        except SystemExit as end:
            errors = capsys.readouterr().err
            if end.code == 0:  # --help
                continue
            lacks = "arguments are required" in errors or "expected one argument" in errors
            assert lacks and not is_whole, f"bertqa {shlex.join([name, *flags])}: {errors}"


def test_the_commands_of_a_document_are_found() -> None:
    """In code blocks and in the text."""
    text = """\
Ask `bertqa infer`, or `python infer.py --model
FOLDER`; the `bertqa` command, it's `python -m pytest`.

```bash
python3 -m venv .venv && .venv/bin/bertqa train --seed 1   # a comment
torchrun --nproc_per_node=2 train.py …; torchrun --nproc_per_node=8 -m bertqa train \\
    --seed 2
python -m bertqa check; python -m bertqa.commands.check
```
"""
    assert sorted(commands_of(text)) == [
        ["bertqa.commands.check"], ["check"], ["infer"], ["infer", "--model", "FOLDER"],
        ["train", "--seed", "1"], ["train", "--seed", "2"], ["train", "…"],
    ]  # fmt: skip


def test_the_readme_lists_the_commands() -> None:
    rows = re.findall(r"^\| `bertqa (\w+)` \|", README, re.MULTILINE)
    assert rows == list(COMMANDS)


def test_the_index_lists_the_rooms() -> None:
    page = text_of("docs/index.md")
    rows = re.findall(r"^\| \[bertqa/(\w+)\]\(\.\./bertqa/\1\) \|", page, re.MULTILINE)
    assert set(rows) == {path.parent.name for path in ROOT.glob("bertqa/*/__init__.py")}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_linked_files_exist(document: str) -> None:
    text = text_of(document)
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (ROOT / document).parent.joinpath(link).exists(), link


def test_the_documents_import_only_public_names() -> None:
    public = {
        (module, name)
        for module, names in re.findall(
            r"^    (bertqa[\w.]*)  +(.+)$", bertqa.__doc__, re.MULTILINE
        )
        for name in names.split(", ")
    }
    documents = [document for document in DOCUMENTS if document != "docs/tour.md"]
    text = "".join(map(text_of, documents))
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    used = {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bertqa")
        for alias in node.names
    }
    assert used and used <= public


def test_the_new_names_of_the_changelog_exist() -> None:
    table = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("| 0.1 | 0.2 |")[1]
    new = [row.split(" | ")[1] for row in re.findall(r"^\| .* \| .* \|$", table, re.MULTILINE)]
    found = [
        (module, name)
        for cell in new
        for module, names in re.findall(r"`(bertqa\.[\w.]+)`: ((?:`\w+`(?:, )?)+)", cell)
        for name in re.findall(r"\w+", names)
    ]
    assert len(found) > 20
    missing = [(m, name) for m, name in found if not hasattr(importlib.import_module(m), name)]
    assert missing == []
