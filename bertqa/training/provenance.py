"""What a run depends on besides its settings and data: versions, commit, command line, device."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bertqa.runtime import Runtime


def surroundings(runtime: Runtime) -> dict[str, Any]:
    """What goes into run.json of them."""
    packages = ("torch", "tokenizers", "datasets", "safetensors", "huggingface_hub", "tqdm")
    return {
        "versions": {"python": sys.version.split()[0]} | {p: version_of(p) for p in packages},
        "git_commit": git_commit(),
        "command": sys.argv,
        "device": str(runtime.device),
        "processes": runtime.world_size,
    }


def version_of(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of this source tree, marked if files differ from it; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
