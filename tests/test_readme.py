"""The README's code is run as it stands."""

import re
from pathlib import Path

import pytest

from bertqa.explain.explanation import Explanation
from bertqa.explain.hooks import Recording
from tests.helpers import write_checkpoint

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


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
