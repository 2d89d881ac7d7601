"""The README's code is run as it stands; every command of the documents is one that there is."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import bertqa
from bertqa.__main__ import COMMANDS
from bertqa.explain.explanation import Explanation
from bertqa.explain.hooks import Recording
from tests.helpers import write_checkpoint

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
ELLIPSES = ("…", "...")


def blocks_of(section: str) -> list[str]:
    """The Python code of a section."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_code_that_looks_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "FOLDER")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks_of("Look inside")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    explanation, seen = names["explanation"], names["seen"]
    assert isinstance(explanation, Explanation) and isinstance(seen, Recording)
    assert "Who built it?" in Path("answer.html").read_text(encoding="utf-8")
    assert set(seen) == {"layers.2", "layers.2.attention.probabilities"}


def test_the_code_that_asks() -> None:
    (code,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if "from_pretrained" in block
    ]
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    answer = names["qa"](question="Who built it?", context="Ada built it.")  # type: ignore[operator]
    assert (answer["start"], answer["end"], answer["answer"]) == (0, 3, "Ada")


# --- commands ------------------------------------------------------------------------------------


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of every command of ours in a document, from the name of the command on."""
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
    """The command and its flags; none, if it is not one of ours."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:  # no command: an apostrophe
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
def test_every_command_of_a_document_is_understood(
    document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, *flags in commands_of((ROOT / document).read_text(encoding="utf-8")):
        if name == "COMMAND" or name.startswith("--"):
            continue
        assert name in COMMANDS
        given = [flag for flag in flags if flag not in ELLIPSES]
        is_whole = bool(given) and given == flags
        try:
            importlib.import_module(f"bertqa.commands.{name}").parse_flags(given)
        except SystemExit:
            said = capsys.readouterr().err
            lacks = "arguments are required" in said or "expected one argument" in said
            assert lacks and not is_whole, f"bertqa {shlex.join([name, *flags])}: {said}"


def test_the_commands_of_a_document_are_found() -> None:
    """In blocks and in the text, whatever starts them."""
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


def test_the_readme_lists_the_rooms() -> None:
    rows = re.findall(r"^\| \[bertqa/(\w+)\]\(bertqa/\1\) \|", README, re.MULTILINE)
    assert set(rows) == {path.parent.name for path in ROOT.glob("bertqa/*/__init__.py")}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_files_that_a_document_links_to_are_there(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (ROOT / document).parent.joinpath(link).exists(), link


def test_the_readme_imports_public_names_alone() -> None:
    public = {
        (module, name)
        for module, names in re.findall(
            r"^    (bertqa[\w.]*)  +(.+)$", bertqa.__doc__, re.MULTILINE
        )
        for name in names.split(", ")
    }
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    used = {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bertqa")
        for alias in node.names
    }
    assert used and used <= public


def test_the_new_names_of_the_changelog_are_there() -> None:
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
