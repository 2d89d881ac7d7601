"""The contents of wheel and sdist."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import bertqa

ROOT = Path(__file__).parents[1]
MODEL = Path("weights") / "minilm-l6-squad"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"


def build(kind: str, tree: Path, folder: Path) -> Path:
    """Build a "wheel" or an "sdist" of a tree, without network access."""
    folder.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind), str(folder)],
        cwd=tree, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a copy of the clone with downloaded and trained models."""
    tree = tmp_path_factory.mktemp("package") / "clone"
    shutil.copytree(
        ROOT / "bertqa", tree / "bertqa", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    for name in ("pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "train.py", "infer.py"):
        shutil.copy(ROOT / name, tree)
    (tree / MODEL).mkdir(parents=True)
    for path in (ROOT / MODEL).iterdir():
        (tree / MODEL / path.name).write_text("of the model")  # only names matter here
    for folder in ("weights/bert-large", "runs/mine", "tests"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "model.safetensors").write_text("not in the package")
        (tree / folder / "test_it.py").write_text("not in the package")
    return build("sdist", tree, tree.parent / "sdist")


@pytest.fixture(scope="module")
def wheel(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as packed:
        if sys.version_info >= (3, 12):
            packed.extractall(folder, filter="data")
        else:
            packed.extractall(folder)
    (tree,) = folder.iterdir()
    return zipfile.ZipFile(build("wheel", tree, folder / "wheel"))


def expected() -> set[str]:
    """Return all files of the package and of the model."""
    package = (path for path in (ROOT / "bertqa").rglob("*") if path.is_file())
    names = {str(path.relative_to(ROOT)) for path in package if "__pycache__" not in path.parts}
    return names | {
        f"bertqa/pretrained/{MODEL.name}/{path.name}" for path in (ROOT / MODEL).iterdir()
    }


def test_the_wheel_has_every_file_of_the_folders_and_no_other(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == expected()
    assert {"bertqa/model/bert.py", "bertqa/explain/page.css", "bertqa/py.typed"} < names
    assert f"bertqa/pretrained/{MODEL.name}/model.safetensors" in names


def test_the_wheel_has_the_command_and_the_version(wheel: zipfile.ZipFile) -> None:
    (folder,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert wheel.read(f"{folder}/entry_points.txt").decode().split("\n")[:2] == [
        "[console_scripts]", "bertqa = bertqa.__main__:main",
    ]  # fmt: skip
    metadata = message_from_string(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["Version"] == bertqa.__version__
    required = {r.split(">")[0] for r in metadata.get_all("Requires-Dist") if "extra" not in r}
    assert {"torch", "tokenizers", "safetensors"} <= required


def test_the_sdist_has_the_scripts_and_no_files_of_the_user(archive: Path) -> None:
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {"train.py", "infer.py", "LICENSE", f"{MODEL}/model.safetensors"} <= names
    tops = {name.partition("/")[0] for name in names if name}
    assert tops == {
        "bertqa", "bertqa.egg-info", "weights", "train.py", "infer.py", "LICENSE", "MANIFEST.in",
        "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg",
    }  # fmt: skip
    assert {name.split("/")[1] for name in names if name.startswith("weights/")} == {MODEL.name}
