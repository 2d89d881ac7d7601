"""Checkpoint folders on this machine: the names of their files, and where they are looked for."""

from pathlib import Path

CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")  # one of them is enough
DECODING_FILE = "decoding.json"  # ours: whether "no answer" is one, and from which score on
OPTIONAL_FILES = ("tokenizer_config.json", "special_tokens_map.json", DECODING_FILE)
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BIN_FILE = "pytorch_model.bin"


SHIPPED_MODEL = "minilm-l6-squad"  # the one that comes with the project


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


def is_there(path: Path) -> bool:
    """Whether its folder has such an entry, be it a link that leads nowhere."""
    return path.is_symlink() or path.exists()


def is_checkpoint(folder: Path) -> bool:
    """Whether it is a folder with a config.json."""
    return is_folder(folder) and (folder / CONFIG_FILE).is_file()


def _stays_inside(name: str) -> bool:
    return "\\" not in name and {"", ".", ".."}.isdisjoint(name.split("/"))
