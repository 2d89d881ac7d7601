"""Flags, settings made from flags, and one-sentence error messages of all commands.

This module does not import torch, so that ``--help`` is fast.
"""

import argparse
import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import NoReturn, TypeVar, get_args, get_type_hints

from bertqa.errors import UserError, did_you_mean
from bertqa.interrupts import Stopped
from bertqa.settings import (
    INT8,
    PRECISIONS,
    DecodingSettings,
    Overrides,
    TrainingSettings,
    WindowSettings,
)

Settings = TypeVar("Settings")
_TOO_LARGE = 2**63  # torch's integers have 64 bits

MODEL_HELP = (
    "checkpoint folder, name under weights/, or name on the hub (downloaded into the Hugging Face "
    "cache)"
)


class Parser(argparse.ArgumentParser):
    """Argument parser that accepts flags with - or _ and reports a mistake in one sentence.

    A mistake exits with code 2.

    Args:
        prog: the command as it was called; None for the name of the script.
    """

    def __init__(self, description: str, prog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._adders: dict[str, Callable[..., argparse.Action]] = {}
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def group(self, title: str) -> Callable[..., argparse.Action]:
        """Return ``add_argument`` of the ``--help`` group with that title."""
        if title not in self._adders:
            self._adders[title] = self.add_argument_group(title).add_argument
        return self._adders[title]

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse a command line."""
        joined = _joined([self._with_underscores(each) for each in arguments])
        flags, unknown = self.parse_known_args(joined)
        if unknown:
            first = unknown[0].partition("=")[0].replace("-", "_").replace("__", "--", 1)
            near = did_you_mean(first, self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        for name, value in vars(flags).items():
            if isinstance(value, int) and value >= _TOO_LARGE:
                self.error(f"argument --{name}: must be less than {_TOO_LARGE}, got {value}")
        return flags

    def _with_underscores(self, argument: str) -> str:
        """Return --top-k=3 and --top-k as --top_k=3 and --top_k, and other arguments unchanged."""
        name, equals, value = argument.partition("=")
        flag = "--" + name[2:].replace("-", "_")
        is_flag = name.startswith("--") and flag in self._option_string_actions
        return flag + equals + value if is_flag else argument

    def error(self, message: str) -> NoReturn:
        """Print the message without the usage, and exit."""
        self.exit(2, f"{self.prog}: {_one_line(message)}; --help lists the flags\n")


def _joined(arguments: Sequence[str]) -> list[str]:
    """Join --x -1e-3 to --x=-1e-3: argparse takes such a number for a flag."""
    joined: list[str] = []
    for argument in arguments:
        is_negative = re.fullmatch(r"-(inf|[0-9.]+e[-+]?[0-9]+)", argument, re.IGNORECASE)
        if is_negative and joined and re.fullmatch(r"--\w+", joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _one_line(message: str) -> str:
    """Join the lines of a message, which may come from a file name or a library."""
    return " ".join(message.split())


def add_model_flags(
    parser: Parser,
    default: str = "",
    *,
    note: str = "",
    computes: bool = True,
    offer_int8: bool = True,
) -> None:
    """Add the flags of the model, its revision, device and precision.

    Args:
        default: of --model; without one the model is the command's first argument.
        note: appended to the help of the model.
        computes: add --device and --precision.
        offer_int8: offer precisions for inference only, too.
    """
    add = parser.group("model")
    # fmt: off
    if default:
        add("--model", default=default, metavar="NAME",
            help=f"{MODEL_HELP}{note} (default: %(default)s)")
    else:
        add("model", metavar="MODEL", help=f"{MODEL_HELP}{note}")
    add("--revision", metavar="REV",
        help="branch, tag or commit of a model on the hub (default: the newest commit)")
    add("--allow_bin", action="store_true",
        help="load pytorch_model.bin, a pickle, if there is no safetensors file")
    if computes:
        add("--device", default="auto",
            help="auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, mps (default: auto)")
        int8 = "; int8 is for CPUs, faster and slightly less accurate" if offer_int8 else ""
        add("--precision", default="auto", choices=["auto", *PRECISIONS, *[INT8] * offer_int8],
            help="precision of matrix products; auto uses bf16 if the processor supports "
            f"it{int8} (default: auto)")
    # fmt: on


def add_settings_flags(parser: Parser, group: str, kind: type, *names: str) -> None:
    """Add a flag for each field of a settings class, or for the named fields.

    The default is None, so that the model's decoding.json may set the value; for
    ``TrainingSettings`` it is the field's default.
    """
    types = get_type_hints(kind)
    for field in fields(kind):
        if names and field.name not in names:
            continue
        options = {key: field.metadata[key] for key in ("help", "metavar", "choices")}
        of_optional = get_args(types[field.name])  # int and None for ``int | None``
        options["type"] = of_optional[0] if of_optional else types[field.name]
        if options["type"] is bool:
            options = {"help": options["help"], "action": "store_true"}
        elif field.default is not None and "(default:" not in options["help"]:
            options["help"] += f" (default: {field.default})"
        default = field.default if kind is TrainingSettings else None
        parser.group(group)(f"--{field.name}", default=default, **options)


def add_window_flags(parser: Parser) -> None:
    """Add the flags that set how contexts are cut into windows."""
    add_settings_flags(parser, "windows", WindowSettings)


def add_decoding_flags(parser: Parser, *, always_answer_flag: bool = False) -> None:
    """Add the flags that set how scores become answers.

    Args:
        always_answer_flag: add --always_answer, for models that have a decoding.json.
    """
    probability_flags = ("temperature", "score_threshold")  # for commands that show probabilities
    names = [f.name for f in fields(DecodingSettings) if f.name not in probability_flags]
    add_settings_flags(parser, "decoding", DecodingSettings, *names)
    if always_answer_flag:
        parser.group("decoding")(
            "--always_answer", "--no_version_2_with_negative", action="store_true",
            help='always return a span, even if the model was trained with "no answer"; '
            "probabilities are then normalized over the spans only",
        )  # fmt: skip


def settings_from_flags(flags: argparse.Namespace, kind: type[Settings]) -> Settings:
    """Return the settings that the flags give; None where the command has no such flag.

    Raises:
        UserError: settings contradict each other or are out of range.
    """
    return kind(**{each.name: getattr(flags, each.name, None) for each in fields(kind)})  # type: ignore[arg-type]


def overrides(flags: argparse.Namespace) -> Overrides:
    """Return the window and decoding flags that were given.

    Raises:
        UserError: --always_answer is given with a flag that allows "no answer".
    """
    given = settings_from_flags(flags, Overrides)
    if not getattr(flags, "always_answer", False):
        return given
    for name in ("version_2_with_negative", "null_score_diff_threshold", "score_threshold"):
        if getattr(given, name) is not None:
            raise UserError(f"--always_answer and --{name} exclude each other: pass one")
    return replace(given, version_2_with_negative=False)


def check_one_process() -> None:
    """Check that the command is a single process.

    Raises:
        UserError: torchrun started several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # set by torchrun
        raise UserError(
            "torchrun: --input must be JSON lines or parquet with several processes: pass such a "
            "file, or start one process"
        )


def run_script(main: Callable[[argparse.Namespace], int | None], flags: argparse.Namespace) -> int:
    """Run a command's ``main`` and return its exit code, by default 0.

    A UserError becomes one sentence on stderr and exit code 2.
    """
    for stream in (sys.stdout, sys.stderr):  # escape what the terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main(flags) or 0
        sys.stdout.flush()
    except UserError as error:
        if flags.debug:
            traceback.print_exc()
        if not error.is_printed_elsewhere:
            rank = os.environ.get("RANK", "0")  # set by torchrun
            where = "" if rank == "0" else f" in process {rank}"
            print(f"error{where}: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except Stopped as stop:
        if os.environ.get("RANK", "0") == "0":
            print(stop, file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader closed the pipe, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # of printing; errors of files are UserErrors already
        if flags.debug or error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        where = error.filename or "standard output"
        print(f"error: cannot write {where}: {error.strerror}: free some space", file=sys.stderr)
        return 2
    return code
