"""The entry point of all commands: ``bertqa train``, or ``python -m bertqa train``.

No command is imported before it is called, and none imports torch before its flags are parsed, so
that ``--help`` costs none of its seconds.
"""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module, metadata

from bertqa import __version__
from bertqa.commands.flags import run_script

COMMANDS = {  # each is a module of bertqa.commands, with parse_flags and main
    "train": "fine-tune BERT for extractive question answering",
    "infer": "answer questions about texts: one, many, or a whole file",
    "check": "validate a data set, and repair what needs no guess",
    "explain": "show what one answer was made of, as a page or in the terminal",
    "verify": "compare a checkpoint with transformers, number by number",
    "ablate": "measure the answers without each head and each layer",
    "threshold": "choose from which null score on a model gives no answer",
    "release": "make a folder to publish of a fine-tuned model, with its model card",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that comes first; its exit code.

    Args:
        arguments: the words after ``bertqa``; None for those of this process.
    """
    name, *flags = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name == "--version":
        print(version_text())
        return 0
    if name not in COMMANDS:
        print(f"bertqa: {mistake(name)}; --help lists the commands", file=sys.stderr)
        return 2
    command = import_module(f"bertqa.commands.{name}")
    return run_script(command.main, command.parse_flags(flags, f"bertqa {name}"))


def help_text() -> str:
    """What ``bertqa --help`` prints."""
    lines = [
        "usage: bertqa COMMAND ...",
        "",
        "BERT for extractive question answering.",
        "",
        *(f"  {name:<12}{does}" for name, does in COMMANDS.items()),
        "",
        "  --help      print this; after a command, its flags",
        "  --version   print the versions of bertqa and torch",
    ]
    return "\n".join(lines)


def version_text() -> str:
    """The versions of this package and of torch, which is not imported for that."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "not installed"
    return f"bertqa {__version__}, torch {torch}"


def mistake(name: str) -> str:
    """What is wrong with the name of a command, and which one may be meant."""
    if name.startswith("-"):
        return f"{name} must follow a command"
    near = difflib.get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1)
    return f"unknown command {name!r}" + "".join(f" (did you mean {word!r}?)" for word in near)


if __name__ == "__main__":
    sys.exit(main())
