"""Allowed imports between the rooms, the folders of bertqa/, in the order of ``MAY_IMPORT``."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bertqa"

# The rooms that each room may import, besides itself and the modules directly in bertqa/.
MAY_IMPORT = {
    "": set(),
    "model": set(),
    "data": set(),
    "answering": {"model", "data"},
    "training": {"model", "data", "answering"},
    "report": {"model", "data", "answering", "training"},
    "explain": {"model", "data", "answering", "training", "report"},
    "audit": {"model", "data", "answering", "training", "report"},
    "commands": {"model", "data", "answering", "training", "report", "explain", "audit"},
}

# The only import of model in data: the type of a batch.
SHARED = ("data", "bertqa.model.packing")

# Imported late and not a dependency: the command's error message says how to install it.
OPTIONAL = {"transformers"}


@dataclass(frozen=True)
class Import:
    """An import of a module.

    Attributes:
        module: the imported module.
        line: its line.
        is_late: whether it is not at the top of its file.
        is_typing: whether it is under ``if TYPE_CHECKING:`` and never run.
    """

    module: str
    line: int
    is_late: bool
    is_typing: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def imports_of(path: Path) -> Iterator[Import]:
    """Yield all imports of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_top = set(map(id, tree.body))
    for_types = {id(node) for block in tree.body if _is_typing(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [_module(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for name in dict.fromkeys(names):
            yield Import(name, node.lineno, id(node) not in at_top, id(node) in for_types)


def _is_typing(node: ast.stmt) -> bool:
    """Return whether a statement is ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _module(package: str, name: str) -> str:
    """Return the module that ``from package import name`` imports: one of ours, or the package."""
    if package.partition(".")[0] != "bertqa":
        return package
    path = ROOT / package.replace(".", "/")
    is_module = (path / f"{name}.py").exists() or (path / name / "__init__.py").exists()
    return f"{package}.{name}" if is_module else package


def room_of(module: str) -> str:
    """Return the room of a module: "model" for ``bertqa.model.bert``, "" for ``bertqa.errors``.

    ``bertqa.__main__``, which calls the commands, belongs to "commands".
    """
    parts = module.split(".")
    if parts[1:] == ["__main__"]:
        return "commands"
    is_room = len(parts) > 1 and (PACKAGE / parts[1] / "__init__.py").exists()
    return parts[1] if is_room else ""


def name_of(path: Path) -> str:
    """Return the dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if "__pycache__" not in path.parts]
SCRIPTS = [ROOT / "train.py", ROOT / "infer.py"]
NAMES = [name_of(path) for path in FILES]


def test_every_folder_is_in_the_table() -> None:
    assert {room_of(name) for name in NAMES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_room_imports_only_rooms_to_its_left(path: Path) -> None:
    room = room_of(name_of(path))
    allowed = MAY_IMPORT[room] | {room, ""}
    wrong = [
        found.module
        for found in imports_of(path)
        if found.top == "bertqa"
        and room_of(found.module) not in allowed
        and (room, found.module) != SHARED
        and not (found.is_typing and name_of(path) == "bertqa")  # its lazy names
    ]
    assert wrong == []


def test_only_the_commands_use_argparse() -> None:
    """Other rooms get typed settings and plain values."""
    users = {name_of(p) for p in FILES for found in imports_of(p) if found.module == "argparse"}
    assert {room_of(name) for name in users} == {"commands"}


def test_imports_form_no_cycle() -> None:
    graph = {name_of(p): {i.module for i in imports_of(p) if i.top == "bertqa"} for p in FILES}
    assert set(TopologicalSorter(graph).static_order()) == set(NAMES)  # raises CycleError


def test_nothing_imports_the_scripts() -> None:
    scripts = {path.stem for path in SCRIPTS}
    assert [p for p in FILES for found in imports_of(p) if found.top in scripts] == []


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=[*NAMES, "train", "infer"])
def test_imports_are_at_the_top_or_give_a_reason(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    docstring, *statements = ast.parse(source).body
    assert isinstance(docstring, ast.Expr), "every module begins with its docstring"
    is_import = [isinstance(node, ast.Import | ast.ImportFrom) for node in statements]
    assert is_import == sorted(is_import, reverse=True)
    lines = source.splitlines()
    for found in imports_of(path):
        if found.is_late:
            assert re.search(r"# late: \S", lines[found.line - 1]), f"line {found.line}: no reason"


def test_third_party_imports_are_dependencies() -> None:
    imports = [found for path in [*FILES, *SCRIPTS] for found in imports_of(path)]
    imported = {found.top for found in imports} - {"bertqa", *sys.stdlib_module_names}
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block
    assert imported - OPTIONAL == set(re.findall(r'"([\w-]+)', block[1]))
    assert all(found.is_late for found in imports if found.top in OPTIONAL)


def test_a_plain_question_only_imports_what_it_needs() -> None:
    """No page, chart, explanation or audit, and no library for datasets."""
    code = (
        "import sys\nfrom bertqa.__main__ import main\n"
        "code = main(['infer', '--question', 'Who built it?', '--context', 'Ada built it.', "
        "'--device', 'cpu', '--precision', 'fp32'])\n"
        "print(*sys.modules)\nsys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0 and result.stderr == "", result.stderr
    answer, modules = result.stdout.splitlines()
    assert answer.split()[1:] == ["0-3", "Ada"]
    libraries = {"datasets", "pandas", "pyarrow", "transformers", "huggingface_hub", "jinja2"}
    assert libraries & set(modules.split()) == set()
    others = {"training", "report", "explain", "audit"}
    found = {name for name in modules.split() if name.partition(".")[0] == "bertqa"}
    found = {name for name in found if room_of(name) in others}
    assert found == set()


def test_all_forms_of_imports_are_found(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "import os, bertqa.model.bert\nfrom bertqa.model import kernels\n"
        "from bertqa.data.squad import Example\nfrom bertqa import data, errors\n"
        "if TYPE_CHECKING:\n    from bertqa.data import rows\n"
        "def f():\n    import transformers.models\n",
        encoding="utf-8",
    )
    found = {(entry.module, entry.is_late) for entry in imports_of(source)}
    assert found == {
        ("os", False), ("bertqa.model.bert", False), ("bertqa.model.kernels", False),
        ("bertqa.data.squad", False), ("bertqa.data", False), ("bertqa.errors", False),
        ("transformers.models", True), ("bertqa.data.rows", True),
    }  # fmt: skip
    assert [entry.module for entry in imports_of(source) if entry.is_typing] == ["bertqa.data.rows"]
    names = ("bertqa.model.bert", "bertqa.errors", "bertqa", "bertqa.__main__")
    assert [room_of(name) for name in names] == ["model", "", "", "commands"]
