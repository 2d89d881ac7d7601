"""The option ``--solutions`` for a reader's own solutions."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.exercises import right


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--solutions", type=Path, help="a Python file with your own functions")


@pytest.fixture(scope="session")
def solutions(request: pytest.FixtureRequest) -> ModuleType:
    """The reader's file, or the reference solutions."""
    path = request.config.getoption("--solutions", default=None)
    if path is None:
        return right
    if not path.is_file():
        raise pytest.UsageError(f"--solutions {path} must be an existing Python file")
    spec = importlib.util.spec_from_file_location("solutions", path)
    assert spec is not None and spec.loader is not None, f"{path} must be a Python file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
