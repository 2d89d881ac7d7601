"""Which questions of a file can be asked, told before the model is asked any of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.data.readers import Line, iter_json_lines
from bertqa.data.squad import Example, check_examples, check_version
from bertqa.data.windows import make_windows
from bertqa.errors import UserError, counted, shown

_AT_ONCE = 256  # questions that are tokenised together


def form_faults(examples: Sequence[Example], source: str) -> Iterator[str]:
    """Of each example, which may have a ``fault``, why it is no question; "" if it is one."""
    if not examples:
        check_examples(examples, source)
    known: set[str] = set()
    for example in examples:
        if example.fault:
            yield f"{example.id}: {example.fault}"
        elif example.id in known:
            name = shown(example.id)
            yield f"{source}: the id {name} is that of an earlier question; give it its own"
        else:
            known.add(example.id)
            yield _said(check_examples, [example], source)


def model_faults(examples: Sequence[Example], source: str, qa: QuestionAnswerer) -> Iterator[str]:
    """Of each example why the model cannot be asked, by settings and tokenizer; "" if it can."""
    for first in range(0, len(examples), _AT_ONCE):
        block = examples[first : first + _AT_ONCE]
        for example, fault in zip(block, _window_faults(block, qa), strict=True):
            negative = qa.decoding.version_2_with_negative
            yield (
                f"{source}: {fault}" if fault else _said(check_version, [example], source, negative)
            )


def checked_lines(source: Path, qa: QuestionAnswerer) -> Iterator[Line]:
    """The lines of a JSON lines file, streamed, with what tokenizer and settings tell of them."""
    lines = iter_json_lines(source, with_negative=qa.decoding.version_2_with_negative)
    while block := list(islice(lines, _AT_ONCE)):
        faults = iter(_window_faults([line.example for line in block if line.example], qa))
        for line in block:
            fault = next(faults) if line.example else ""
            message = f"{source}, line {line.number}: {fault}"
            yield replace(line, example=None, fault=message) if fault else line


def _window_faults(examples: Sequence[Example], qa: QuestionAnswerer) -> list[str]:
    """Of each example why no windows can be made of it: of its question, as any text can be cut."""
    questions = [replace(example, context="") for example in examples]
    fault = _said(make_windows, questions, qa.tokenizer, qa.windows)
    if fault and len(examples) > 1:  # whose?
        return [fault for example in examples for fault in _window_faults([example], qa)]
    return [fault] * len(examples)


def _said(check: Callable[..., object], *arguments: object) -> str:
    """What a check refuses, "" if nothing."""
    try:
        check(*arguments)
    except UserError as error:
        return str(error)
    return ""


def refuse_faulty(faults: Iterable[str]) -> None:
    """See that no row has a fault.

    Raises:
        UserError: one has; the first is told, all are counted.
    """
    found = filter(None, faults)
    if first := next(found, ""):
        more = sum(1 for _ in found)
        also = f" ({counted(more, 'more faulty row')})" if more else ""
        raise UserError(
            f"{first}{also}; nothing was asked: "
            "correct the file, or pass --skip_bad to leave such rows out"
        )
