"""The entry point of all commands: ``bertqa train``, or ``python -m bertqa train``.

No command is imported before it is called, and none imports torch before its flags are parsed, so
that ``--help`` costs none of its seconds.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from bertqa import __version__

COMMANDS = {  # each is a module of bertqa.commands, with parse_flags and main
    "train": "fine-tune BERT for extractive question answering",
    "infer": "answer questions about texts: one, many, or a whole file",
    "check": "validate a data set, and repair what needs no guess",
    "explain": "show what one answer was made of, as a page or in the terminal",
    "verify": "compare a checkpoint with transformers, number by number",
    "ablate": "measure the answers without each head and each layer",
    "threshold": "choose from which null score on a model gives no answer",
    "calibrate": "make the probability of an answer say how often such answers are right",
    "release": "make a folder to publish of a fine-tuned model, with its model card",
}


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command that comes first; its exit code.

    Args:
        arguments: the words after ``bertqa``; None for those of this process.
        program: what messages call it; None for ``bertqa`` and the command.
    """
    try:
        return _run(sys.argv[1:] if arguments is None else arguments, program)
    except KeyboardInterrupt:  # while modules are imported, before ``run_script`` takes care
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
    from bertqa.interrupts import imports_end_at_once  # late: Ctrl-C is heeded by now

    with imports_end_at_once():
        from bertqa.commands.flags import run_script  # late: the same

        command = import_module(f"bertqa.commands.{name}")
        return run_script(command.main, command.parse_flags(flags, program or f"bertqa {name}"))


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
    from importlib import metadata  # late: takes a third of the time of --help

    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "not installed"
    return f"bertqa {__version__}, torch {torch}"


def mistake(name: str) -> str:
    """What is wrong with the name of a command, and which one may be meant."""
    if name.startswith("-"):
        return f"{name} must follow a command"
    import difflib  # late: for mistakes alone

    near = difflib.get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1)
    return f"unknown command {name!r}" + "".join(f" (did you mean {word!r}?)" for word in near)


if __name__ == "__main__":
    sys.exit(main())
