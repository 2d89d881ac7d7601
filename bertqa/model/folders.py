"""Checkpoint folders on this machine: under weights/, and those that came with the package."""

from pathlib import Path

from bertqa.files import CONFIG_FILE

SHIPPED_MODEL = "minilm-l6-squad"  # the one that comes with the project


def weights_dir() -> Path:
    """The folder weights/ of the source tree; of the current folder, if there is no such tree."""
    tree = Path(__file__).resolve().parents[2]
    return (tree if (tree / "pyproject.toml").exists() else Path()) / "weights"


def installed_weights_dir() -> Path:
    """Where an installed package has the models that came with it."""
    return Path(__file__).resolve().parents[1] / "pretrained"


def is_shipped(folder: Path) -> bool:
    """Whether it is the one of the model that comes with the project."""
    parents = (weights_dir(), installed_weights_dir())
    return folder.resolve() in [(parent / SHIPPED_MODEL).resolve() for parent in parents]


def find_local(name: str, weights_dir: Path) -> Path | None:
    """``name`` as a folder, or ``weights_dir / name`` with a config.json; None if neither is."""
    if name and is_folder(Path(name)):
        return Path(name)
    target = weights_dir / name
    return target if _stays_inside(name) and is_checkpoint(target) else None


def is_folder(path: Path) -> bool:
    """Whether there is a folder of that name to be seen."""
    try:
        return path.is_dir()
    except OSError:  # longer than the file system's names, or in a folder closed to us
        return False


def is_checkpoint(folder: Path) -> bool:
    """Whether it is a folder with a config.json."""
    return is_folder(folder) and (folder / CONFIG_FILE).is_file()


def _stays_inside(name: str) -> bool:
    return "\\" not in name and {"", ".", ".."}.isdisjoint(name.split("/"))
