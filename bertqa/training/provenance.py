"""Provenance of a run: versions, commit, command line, machine."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bertqa import __version__
from bertqa.runtime import Runtime

_PACKAGE = Path(__file__).resolve().parents[1]


def run_metadata(runtime: Runtime) -> dict[str, Any]:
    """Return the provenance as entries of run.json."""
    packages = ("torch", "tokenizers", "datasets", "safetensors", "huggingface_hub", "tqdm")
    versions = {"python": sys.version.split()[0], "bertqa": __version__}
    return {
        "versions": versions | {package: version_of(package) for package in packages},
        "git_commit": git_commit(),
        "command": sys.argv,
        "device": str(runtime.device),
        "processor": processor(runtime.device),
        "threads": torch.get_num_threads(),
        "processes": runtime.world_size,
    }


def processor(device: torch.device) -> str:
    """Return the names of the CPU and, for a CUDA device, of the GPU."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")  # on Linux
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        name = next(names, name)
    cpu = f"{name}, {os.cpu_count()} cores"
    return f"{torch.cuda.get_device_name(device)}; {cpu}" if device.type == "cuda" else cpu


def version_of(package: str) -> str | None:
    """Return the installed version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit(package: Path = _PACKAGE) -> str | None:
    """Return the commit of a package's source tree, marked if files were modified.

    None outside git, and for an installed copy: it may be in a virtual environment inside the
    user's repository, which has unrelated commits.
    """
    tree = package.parent
    project = tree / "pyproject.toml"
    if not project.is_file() or 'name = "bertqa"' not in project.read_text(encoding="utf-8"):
        return None
    if _git(tree, "rev-parse", "--show-prefix") != "":  # the tree is not the repository's root
        return None
    if not _git(tree, "ls-files", "--error-unmatch", f"{package.name}/__init__.py"):
        return None
    return _git(tree, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git in a folder; None if it fails or is not installed."""
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
