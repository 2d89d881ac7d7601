"""Who may import whom: three rooms, and what each may see of the others."""

import ast
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bertqa"
SCRIPTS = ("train", "infer")

# The model room: from ids to scores, and the files that hold weights. It knows nothing of text.
MODEL_ROOM = {
    "config", "stream", "kernels", "interventions", "model", "inside", "packed", "weights",
    "checkpoint", "folders", "hub", "files", "errors",
}  # fmt: skip
# The text room: from files to windows, from scores to answers. It knows nothing of the encoder.
TEXT_ROOM = {
    "graphemes", "tokenization", "squad", "rows", "readers", "labels", "features", "batching",
    "decoding", "metrics", "analysis", "feature_cache", "offsets", "excerpts", "mending",
    "audit", "audit_text",
}  # fmt: skip
# The loop room: brings the two together.
LOOP_ROOM = {
    "optim", "runtime", "evaluation", "runs", "training", "answering", "cli", "charts", "average",
    "release", "threshold", "interrupts", "decoding_file", "answer_lines", "pages",
    "audit_page", "report_page", "differences", "comparison", "verify", "ablate", "explanation",
    "explain", "explain_data", "explain_html", "explain_layers", "explain_page",
    "explain_sources", "explain_spans", "explain_text", "__init__",
}  # fmt: skip

# What the text room may take from the model room: a batch's form, reading and writing, the error.
SHARED = {"stream", "files", "folders", "errors"}

# Imports that stand inside a function, each with its reason.
LATE = {
    # It takes seconds; only parquet and data sets of the hub need it.
    ("readers", "datasets"),
    # Its client takes a quarter of a second; only a download needs it.
    ("answering", "bertqa.hub"),
    # What it compares with, for this one command; who does not use it need not install it.
    ("verify", "transformers"),
}

# What only a late import names, and pyproject.toml no dependency: the command says how to get it.
OPTIONAL = {"transformers"}


class Import:
    """One import statement's target: a module, and where it stands."""

    def __init__(self, node: ast.stmt, module: str) -> None:
        self.node, self.module = node, module
        self.top = module.partition(".")[0]


def imports_of(path: Path) -> list[Import]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [Import(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "bertqa":  # from bertqa import kernels
                found += [Import(node, f"bertqa.{alias.name}") for alias in node.names]
            else:
                found.append(Import(node, node.module))
    return found


def path_of(module: str) -> Path:
    return ROOT / f"{module}.py" if module in SCRIPTS else PACKAGE / f"{module}.py"


def siblings_of(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    return {
        found.module.split(".")[1] if "." in found.module else "__init__"
        for found in imports_of(path_of(module))
        if found.top == "bertqa"
    }


MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def test_every_module_has_its_room() -> None:
    rooms = [*MODEL_ROOM, *TEXT_ROOM, *LOOP_ROOM]
    assert sorted(rooms) == MODULES


@pytest.mark.parametrize("module", sorted(MODEL_ROOM))
def test_the_model_room_knows_nothing_of_text_and_loop(module: str) -> None:
    assert siblings_of(module) <= MODEL_ROOM


@pytest.mark.parametrize("module", sorted(TEXT_ROOM))
def test_the_text_room_knows_nothing_of_the_encoder(module: str) -> None:
    assert siblings_of(module) <= TEXT_ROOM | SHARED


def test_imports_go_in_no_circle() -> None:
    graph = {module: siblings_of(module) for module in MODULES}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)  # raises CycleError


def test_nothing_imports_the_scripts() -> None:
    importers = [
        m for m in [*MODULES, *SCRIPTS] for i in imports_of(path_of(m)) if i.top in SCRIPTS
    ]
    assert importers == []


@pytest.mark.parametrize("module", [*MODULES, *SCRIPTS])
def test_imports_stand_at_the_top(module: str) -> None:
    statements = ast.parse(path_of(module).read_text(encoding="utf-8")).body
    docstring, *statements = statements
    assert isinstance(docstring, ast.Expr), "every module begins with its docstring"
    is_import = [isinstance(node, ast.Import | ast.ImportFrom) for node in statements]
    assert is_import == sorted(is_import, reverse=True)
    at_top = {
        (node.lineno, node.col_offset)
        for node, chosen in zip(statements, is_import, strict=True)
        if chosen
    }
    late = {
        (module, found.module)
        for found in imports_of(path_of(module))
        if (found.node.lineno, found.node.col_offset) not in at_top
    }
    assert late == {entry for entry in LATE if entry[0] == module}


def test_third_parties_are_those_that_pyproject_names() -> None:
    imported = {i.top for m in [*MODULES, *SCRIPTS] for i in imports_of(path_of(m))}
    imported -= {"bertqa", *sys.stdlib_module_names}
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block
    declared = set(re.findall(r'"([\w-]+)', block[1]))
    assert declared == {
        "torch", "tokenizers", "datasets", "safetensors", "huggingface_hub", "tqdm",
    }  # fmt: skip
    assert imported - OPTIONAL == declared
    assert {m for m, name in LATE if name in OPTIONAL} == {"verify"}
    users = {m for m in [*MODULES, *SCRIPTS] for i in imports_of(path_of(m)) if i.top in OPTIONAL}
    assert users == {"verify"}


def test_importing_the_library_is_cheap() -> None:
    """Those who only ask questions do not wait for the libraries of data sets."""
    heavy = ("datasets", "pandas", "pyarrow", "transformers", "huggingface_hub")
    code = f"import sys, bertqa, infer; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"
    assert result.stderr == ""


def test_the_checks_see_what_they_look_for(tmp_path: Path) -> None:
    """An import is found whatever its form and place."""
    source = tmp_path / "module.py"
    source.write_text(
        "import os, bertqa.model\nfrom bertqa import kernels\nfrom bertqa.squad import Example\n"
        "def f():\n    import transformers.models\n",
        encoding="utf-8",
    )
    found = {entry.module for entry in imports_of(source)}
    assert found == {
        "os", "bertqa.model", "bertqa.kernels", "bertqa.squad", "transformers.models",
    }  # fmt: skip
