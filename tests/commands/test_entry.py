"""``bertqa``, ``python -m bertqa`` and ``import bertqa``: commands, names and import costs."""

import argparse
import ast
import importlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import get_args, get_type_hints

import pytest

import bertqa
from bertqa import runtime, settings
from bertqa.__main__ import COMMANDS, main
from bertqa.answering import evaluation
from bertqa.commands.flags import Parser, overrides, settings_from_flags
from bertqa.interrupts import imports_end_at_once
from bertqa.settings import (
    DataSettings,
    DecodingSettings,
    Overrides,
    TrainingSettings,
    WindowSettings,
)
from tests.helpers import STORIES, write_checkpoint

ROOT = Path(__file__).parents[2]

# Slow imports that --help does not need.
HEAVY = (
    "torch", "numpy", "tokenizers", "safetensors", "datasets", "huggingface_hub", "jinja2", "tqdm",
    "transformers",
)  # fmt: skip


def python(code: str, *arguments: str) -> str:
    """Run code in a separate process and return its output."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


# --- the commands --------------------------------------------------------------------------------


def module_of(command: str) -> ModuleType:
    return importlib.import_module(f"bertqa.commands.{command}")


def test_the_files_with_flags_are_the_commands() -> None:
    files = (ROOT / "bertqa" / "commands").glob("*.py")
    assert {f.stem for f in files if "\ndef parse_flags(" in f.read_text("utf-8")} == set(COMMANDS)
    for name in COMMANDS:
        assert callable(module_of(name).main)


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        output = capsys.readouterr().out
        for name, does in COMMANDS.items():
            assert re.search(rf"^  {name} +{re.escape(does)}$", output, re.MULTILINE)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom bertqa.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    *text, heavy = python(code, *command.split(), "--help").splitlines()
    assert text[0].startswith(f"usage: bertqa {command or 'COMMAND'} ")
    assert heavy == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example_and_explains_every_flag(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert not end.value.code
    output = capsys.readouterr().out
    assert f"\nbertqa {command} " in output
    assert "\npositional arguments:" not in output  # every argument is in a named group
    *_, rest = output.split("\noptions:")
    explained = re.findall(r"^  (?:--?\w+|[A-Z]+).*(?:\n {10,}\S.*)*", rest, re.MULTILINE)
    assert len(explained) > 2
    assert all(re.search(r"(\S  +|\n {10,})[\w\"]", entry) for entry in explained)


def test_version_prints_bertqa_and_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--version"]) == 0
    output = capsys.readouterr().out
    assert output == f"bertqa {bertqa.__version__}, torch {version('torch')}\n"

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(", torch not installed\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "bertqa: unknown command 'trian' (did you mean 'train'?)"),
        (["xyz", "--help"], "bertqa: unknown command 'xyz'"),
        (["help"], "bertqa: unknown command 'help' (did you mean '--help'?)"),
        (["hlep"], "bertqa: unknown command 'hlep' (did you mean '--help'?)"),
        (["version"], "bertqa: unknown command 'version' (did you mean '--version'?)"),
        (["--model", "x"], "bertqa: --model must follow a command"),
        (
            ["train", "--trian-file=x"],
            "bertqa train: unrecognized arguments: --trian-file=x (did you mean '--train_file'?)",
        ),
        (["train", "--qqq"], "bertqa train: unrecognized arguments: --qqq"),
        (["infer", "some.json"], "bertqa infer: unrecognized arguments: some.json"),
        (["infer", "--top_k", "x"], "bertqa infer: argument --top_k: invalid int value: 'x'"),
        (["threshold"], "bertqa threshold: the following arguments are required: MODEL, FILE"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_command(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as end:
        assert isinstance(end.code, int)
        code = end.code
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert re.fullmatch(re.escape(message) + r"; --help lists the (commands|flags)\n", captured.err)


@pytest.mark.parametrize(
    ("called", "name"), [(["-m", "bertqa", "train"], "bertqa train"), (["train.py"], "train.py")]
)
def test_a_mistake_names_the_program_as_called(called: list[str], name: str) -> None:
    result = subprocess.run(
        [sys.executable, *called, "--learning_rate"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr == (
        f"{name}: argument --learning_rate: expected one argument; --help lists the flags\n"
    )


def test_ctrl_c_during_imports_prints_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bertqa.__main__.import_module", interrupt)
    assert main(["infer"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("script", ["infer.py", "train.py"])
def test_ctrl_c_before_the_commands_are_imported_prints_interrupted(
    tmp_path: Path, script: str
) -> None:
    shutil.copy(ROOT / script, tmp_path)
    (tmp_path / "bertqa").mkdir()
    (tmp_path / "bertqa/__init__.py").touch()
    (tmp_path / "bertqa/__main__.py").write_text("raise KeyboardInterrupt")
    result = subprocess.run(
        [sys.executable, tmp_path / script], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


def test_ctrl_c_is_not_lost_in_an_import(tmp_path: Path) -> None:
    """Some C modules take every exception for a missing module."""
    press = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "deaf.py").write_text(f"try:\n    {press}\nexcept BaseException: pass")
    # A process started in the background may ignore SIGINT, and so do its children.
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "from bertqa.interrupts import imports_end_at_once\nwith imports_end_at_once(): {}"
    for body, code, message in (
        ("import deaf", 130, "interrupted\n"),
        (f"exec({press!r})", -signal.SIGINT, "KeyboardInterrupt\n"),  # outside of imports
    ):
        result = subprocess.run(
            [sys.executable, "-c", script.format(body)], capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}, check=False,
        )  # fmt: skip
        assert result.returncode == code and result.stderr.endswith(message), result.stderr


def test_a_custom_handler_of_ctrl_c_is_kept() -> None:
    for handler in (signal.SIG_IGN, lambda *_: None, signal.default_int_handler):
        before = signal.signal(signal.SIGINT, handler)
        try:
            with imports_end_at_once():
                is_same = signal.getsignal(signal.SIGINT) is handler
            assert is_same == (handler is not signal.default_int_handler)
            assert signal.getsignal(signal.SIGINT) is handler
        finally:
            signal.signal(signal.SIGINT, before)


def test_the_return_value_of_a_command_is_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--train_file", str(tmp_path / "none.json")]) == 2
    assert f"error: {tmp_path / 'none.json'}: must be an existing file" in capsys.readouterr().err


def test_flags_of_one_group_are_listed_together(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("A test.", "test")
    parser.group("data")("--first")
    parser.group("model")("--second")
    parser.group("data")("--third")
    with pytest.raises(SystemExit):
        parser.parse(["--help"])
    output = capsys.readouterr().out
    assert re.search(r"\ndata:\n  --first .*\n  --third .*\n\nmodel:\n  --second ", output)
    assert parser.parse(["--third", "x"]) == argparse.Namespace(
        debug=False, first=None, second=None, third="x"
    )


# --- the flags made from settings.py -------------------------------------------------------------

SETTINGS = {
    "train": (DataSettings, TrainingSettings, WindowSettings, DecodingSettings),
    "infer": (Overrides,),
}
EVERY_SETTING = [
    (command, kind, field.name)
    for command, kinds in SETTINGS.items()
    for kind in kinds
    for field in fields(kind)
    if command == "infer" or field.name not in ("temperature", "score_threshold")
]


@pytest.mark.parametrize(("command", "kind", "name"), EVERY_SETTING)
def test_every_setting_has_a_flag(command: str, kind: type, name: str) -> None:
    """Both spellings of the flag are accepted, and its value has the field's type."""
    hint = get_type_hints(kind)[name]
    of = next(iter(get_args(hint)), hint)
    fits = {"decoder": "top20", "lr_scheduler_type": "constant_with_warmup"}.get(name, "7")
    value = True if of is bool else of(fits)
    parse = module_of(command).parse_flags
    for flag in (f"--{name}", f"--{name.replace('_', '-')}"):
        found = getattr(parse([flag] if of is bool else [flag, fits]), name)
        assert (type(found), found) == (type(value), value)
    assert getattr(parse([]), name) != value


def test_without_flags_the_settings_are_the_defaults() -> None:
    flags = module_of("train").parse_flags([])
    assert settings_from_flags(flags, TrainingSettings) == TrainingSettings()
    assert settings_from_flags(flags, DataSettings) == DataSettings()
    assert overrides(flags) == Overrides()


def test_teachers_can_be_given_by_one_flag_or_several() -> None:
    for _ in range(2):  # the default list is not changed by a command line
        flags = module_of("train").parse_flags(["--teacher", "a", "b", "--teacher", "c"])
        assert flags.teacher == ["a", "b", "c"]
    assert module_of("train").parse_flags([]).teacher == []


def test_the_overrides_are_the_fields_of_windows_and_decoding() -> None:
    names = [field.name for kind in (WindowSettings, DecodingSettings) for field in fields(kind)]
    assert [field.name for field in fields(Overrides)] == names


def test_the_choices_of_the_flags_are_implemented() -> None:
    assert tuple(runtime.DTYPES) == settings.PRECISIONS
    assert tuple(evaluation.DECODERS) == settings.DECODERS


# --- the names of the package --------------------------------------------------------------------


def test_importing_the_package_imports_no_library() -> None:
    code = f"import sys, bertqa; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code) == "[]\n"


def test_public_names_are_imported_lazily() -> None:
    assert set(bertqa.__all__) <= set(dir(bertqa))
    everything: dict[str, object] = {}
    exec("from bertqa import *", everything)
    assert set(bertqa.__all__) <= set(everything)
    for name in bertqa.__all__:
        assert everything[name] is getattr(bertqa, name)
    assert pickle.loads(pickle.dumps(bertqa.QuestionAnswerer)) is bertqa.QuestionAnswerer
    example = bertqa.Example("1", "Who?", "Ada.")
    assert pickle.loads(pickle.dumps(example)) == example
    with pytest.raises(AttributeError, match="no attribute 'Answerer'"):
        _ = bertqa.Answerer
    with pytest.raises(ImportError):
        exec("from bertqa import Answerer")


def test_type_checkers_see_the_lazy_names() -> None:
    tree = ast.parse((ROOT / "bertqa" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for name, module in seen.items():
        assert getattr(bertqa, name) is getattr(importlib.import_module(module or ""), name)
    assert set(bertqa.__all__) == {*seen, "__version__"}


def listed(begin: str) -> list[tuple[str, str]]:
    """Return the rows of a list in the package's docstring: name and description."""
    *_, rest = (bertqa.__doc__ or "").partition(begin)
    text = rest.split("\n\n")[1]
    return [
        (name, beside) for name, beside in re.findall(r"^    (\S+)  +(.+)$", text, re.MULTILINE)
    ]


def test_the_documented_public_names_exist() -> None:
    rows = listed("Public names")
    assert len(rows) > 5
    for module, names in rows:
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_the_files_of_the_reading_order_exist() -> None:
    rows = listed("in reading order")
    assert len(rows) == 10
    for name, _ in rows:
        assert (ROOT / "bertqa" / f"{name}.py").is_file(), name


# --- several processes ---------------------------------------------------------------------------


def test_torchrun_starts_the_command_in_several_processes(tmp_path: Path) -> None:
    model, run = write_checkpoint(tmp_path / "tiny"), tmp_path / "run"
    flags = [
        "--model", model, "--train_file", STORIES, "--max_train_samples", 2, "--max_steps", 1,
        "--max_seq_length", 64, "--doc_stride", 16, "--max_query_length", 24, "--device", "cpu",
        "--precision", "fp32", "--output_dir", run,
    ]  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [sys.executable, *launcher, "-m", "bertqa", "train", *map(str, flags)],
        cwd=ROOT,
        env=os.environ
        | {"HF_DATASETS_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    described = json.loads((run / "run.json").read_text())
    assert described["processes"] == 2
    program, *words = described["command"]
    assert program == str(ROOT / "bertqa" / "__main__.py")
    assert words == ["train", *map(str, flags)]
