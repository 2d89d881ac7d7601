"""Entry point of all commands: ``bertqa train``, or ``python -m bertqa train``.

A command is imported when it is called, and torch only after its flags are parsed, so that
``--help`` is fast.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from bertqa import __version__
from bertqa.errors import did_you_mean

COMMANDS = {  # modules of bertqa.commands, with parse_flags and main
    "train": "fine-tune BERT for extractive question answering",
    "infer": "answer questions about texts: one question, many, or a whole file",
    "check": "validate a dataset, and repair unambiguous errors",
    "explain": "explain one answer, as a page or in the terminal",
    "verify": "compare a checkpoint with transformers, number by number",
    "ablate": "measure accuracy without each attention head and each layer",
    "threshold": 'choose the null score threshold of "no answer"',
    "calibrate": "calibrate answer probabilities by temperature scaling",
    "release": "export a fine-tuned model for publication, with its model card",
}


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: command and flags; None for those of this process.
        program: program name in messages; None for ``bertqa`` and the command.
    """
    try:
        return _run(sys.argv[1:] if arguments is None else arguments, program)
    except KeyboardInterrupt:  # during imports, before ``run_script`` handles it
        print("interrupted", file=sys.stderr)
        return 130


def _run(arguments: Sequence[str], program: str | None) -> int:
    name, *flags = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name == "--version":
        print(version_text())
        return 0
    if name not in COMMANDS:
        print(f"bertqa: {mistake(name)}; --help lists the commands", file=sys.stderr)
        return 2
    from bertqa.interrupts import imports_end_at_once  # late: Ctrl-C is handled by now

    with imports_end_at_once():
        from bertqa.commands.flags import run_script  # late: the same

        command = import_module(f"bertqa.commands.{name}")
        return run_script(command.main, command.parse_flags(flags, program or f"bertqa {name}"))


def help_text() -> str:
    """Return the text of ``bertqa --help``."""
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
    """Return the versions of this package and of torch, without importing torch."""
    from importlib import metadata  # late: takes a third of the time of --help

    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "not installed"
    return f"bertqa {__version__}, torch {torch}"


def mistake(name: str) -> str:
    """Describe an unknown command, and suggest a similar one."""
    if name.startswith("-"):
        return f"{name} must follow a command"
    return f"unknown command {name!r}{did_you_mean(name, [*COMMANDS, '--help', '--version'])}"


if __name__ == "__main__":
    sys.exit(main())
