"""Setup of the tests of the commands: flags of calls that succeed, and files that break them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bertqa.commands.flags import run_script

ROOT = Path(__file__).parents[2]
CONTEXT = "Ada built the quay in 1642. Ben swept it."
ROW = {
    "id": "first",
    "question": "Who built it?",
    "context": CONTEXT,
    "answers": {"text": ["Ada"], "answer_start": [0]},
}
WINDOWS = ["--max_seq_length", "64", "--doc_stride", "16"]
HERE = ["--device", "cpu", "--precision", "fp32"]


def call(command: str, *arguments: object) -> int:
    """Run a command in this process and return its exit code."""
    module = import_module(f"bertqa.commands.{command}")
    try:
        return run_script(module.main, module.parse_flags([str(a) for a in arguments]))
    except SystemExit as end:  # raised by argparse for an unknown flag
        return int(end.code or 0)


def environment(home: Path) -> dict[str, str]:
    """Return variables of a separate process with its caches in a folder."""
    return os.environ | {
        "HF_HOME": str(home / "hf"),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "HF_HUB_OFFLINE": "1",
    }


def run(command: list[object], home: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in a separate process, without a terminal."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment(home),
        stdin=subprocess.DEVNULL, encoding="utf-8", check=False, **streams,
    )  # fmt: skip


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def without_head(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["qa_outputs.weight"], tensors["qa_outputs.bias"]


@dataclass
class World:
    """A folder to write to, a good checkpoint and a finished run."""

    folder: Path
    good: Path
    finished: Path = Path()

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def write(self, name: str, content: object) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
        return path

    def rows(self, name: str, *rows: dict[str, Any]) -> Path:
        return self.write(name, {"data": list(rows)})

    def row(self, **changes: object) -> Path:
        return self.rows("rows.json", ROW | changes)

    def lines(self, *more: str) -> Path:
        return self.write("rows.jsonl", "\n".join([json.dumps(ROW), *more]))

    def checkpoint(self, name: str | None = None, content: object = None) -> Path:
        """Copy the good checkpoint with one file replaced, or removed if ``content`` is None."""
        folder = self.folder / "broken"
        shutil.copytree(self.good, folder)
        if name and content is None:
            (folder / name).unlink()
        elif name:
            self.write(f"broken/{name}", content)
        return folder

    def config(self, **changes: object) -> Path:
        return self.checkpoint("config.json", read_json(self.good / "config.json") | changes)

    def tensors(self, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
        folder = self.checkpoint()
        rewrite(folder / "model.safetensors", change)
        return folder

    def pickle(self) -> Path:
        folder = self.checkpoint("pytorch_model.bin", "x")
        (folder / "model.safetensors").unlink()
        return folder

    def resumed(self, *arguments: object, change: Callable[[Path], object] | None = None) -> Any:
        """Return flags that resume a copy of the finished run, changed by ``change``."""
        shutil.copytree(self.finished, self.out)
        if change:
            change(self.out)
        return self.train("--resume", *arguments)

    def train(self, *arguments: object) -> list[object]:
        """Return flags of a run of one step that succeeds, followed by these."""
        # fmt: off
        return [
            "--model", self.good, "--train_file", self.rows("good.json", ROW),
            "--output_dir", self.out, *WINDOWS, "--max_steps", 1, *HERE, *arguments,
        ]
        # fmt: on

    def ask(self, *arguments: object) -> list[object]:
        """Return flags of a question that is answered, followed by these."""
        question = ["--question", "Who?", "--context", CONTEXT]
        return ["--model", self.good, *question, *WINDOWS, *HERE, *arguments]

    def file(self, path: Path, *arguments: object) -> list[object]:
        """Return flags that answer all questions of a file, followed by these."""
        files = ["--input", path, "--output_dir", self.out]
        return ["--model", self.good, *files, *WINDOWS, *HERE, *arguments]

    def set(self, *arguments: object) -> list[object]:
        """Return flags that answer all questions of a dataset on the hub, followed by these."""
        return ["--dataset", "squad", "--output_dir", self.out, *arguments]
