"""Runner of the tour: execute its snippets, update their outputs and draw its figures.

``python -m docs.tour`` updates docs/tour.md; ``tests/explain/test_tour.py`` does the same without
writing.

The info string of a fence in tour.md defines the block: ``python`` is a snippet, executed after
those before it in one namespace; ``text`` directly after a snippet is its output; ``py`` is quoted
from the file and function that the line above names; an empty one is a formula.
"""

import ast
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bertqa.files import WEIGHTS_FILE
from bertqa.model.hub import SHIPPED_MODEL, find_folder
from docs.tour_pictures import pictures

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER / "tour.md"
ROOT = FOLDER.parent

_DIGEST = re.compile(r"(?<=SHA-256\n`)[^`]*(?=`)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_QUOTE = re.compile(r"^\[([\w./]+)\]\(\.\./\1\), `([\w.]+)`:$")


@dataclass(frozen=True)
class Block:
    """A block of the page.

    Attributes:
        kind: ``prose``, or the info string of a fence, "" for a formula.
        text: content without the fence.
        line: line of the page at which ``text`` starts, from 1.
    """

    kind: str
    text: str
    line: int

    def __str__(self) -> str:
        return self.text if self.kind == "prose" else f"```{self.kind}\n{self.text}```"


def blocks_of(page: str) -> list[Block]:
    """Split the page at its fences; joined, the blocks are the page."""
    blocks, start = [], 0
    for fence in _FENCE.finditer(page):
        blocks.append(_prose(page, start, fence.start()))
        blocks.append(Block(fence[1], fence[2], page.count("\n", 0, fence.start()) + 2))
        start = fence.end()
    return [*blocks, _prose(page, start, len(page))]


def _prose(page: str, start: int, end: int) -> Block:
    return Block("prose", page[start:end], page.count("\n", 0, start) + 1)


def run(blocks: Sequence[Block]) -> tuple[list[str], dict[str, Any]]:
    """Run the snippets; return what each prints, and their namespace."""
    names: dict[str, Any] = {"__name__": "tour"}
    printed = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more threads sum in another order and round differently
    try:
        for block in blocks:
            if block.kind == "python":
                # The empty lines make a traceback refer to the lines of the page.
                code = compile("\n" * (block.line - 1) + block.text, str(PAGE), "exec")
                with redirect_stdout(io.StringIO()) as out:
                    exec(code, names)
                printed.append(out.getvalue())
    finally:
        torch.set_num_threads(threads)
    return printed, names


def outputs_of(blocks: Sequence[Block]) -> list[str]:
    """Return the output of each snippet on the page, "" if it has none."""
    texts: list[str] = []
    for i, block in enumerate(blocks):
        if block.kind == "python":
            follows = _output_index(blocks, i) is not None
            texts.append(blocks[i + 2].text if follows else "")
    return texts


def _output_index(blocks: Sequence[Block], snippet: int) -> int | None:
    """Return the index of a snippet's output, which follows after an empty line."""
    after = blocks[snippet + 1 : snippet + 3]
    is_output = len(after) == 2 and after[1].kind == "text" and not after[0].text.strip()
    return snippet + 2 if is_output else None


def with_outputs(blocks: Sequence[Block], printed: Sequence[str]) -> str:
    """Return the page with its outputs replaced."""
    rest, parts = iter(printed), []
    old = {_output_index(blocks, i) for i, b in enumerate(blocks) if b.kind == "python"}
    for i, block in enumerate(blocks):
        if i in old or i + 1 in old:  # an output, or the empty line before it
            continue
        parts.append(str(block))
        if block.kind == "python" and (text := next(rest)):
            parts.append(f"\n\n{Block('text', text, 0)}")
    return "".join(parts)


def difference(expected: str, printed: str) -> str:
    """Describe the first difference of two outputs beyond rounding and whitespace, "" if none.

    Words and integers must be equal; numbers with a decimal point may differ by one unit of their
    last digit, since other processors sum in another order.
    """
    words = [_NUMBER.sub("#", text).split() for text in (expected, printed)]
    if words[0] != words[1]:
        return f"{expected!r} is now {printed!r}"
    pairs = zip(_NUMBER.findall(expected), _NUMBER.findall(printed), strict=True)
    for old, new in pairs:
        decimals = [len(number.partition(".")[2]) for number in (old, new)]
        unit = 10.0 ** -decimals[0] if decimals[0] else 0.0
        if decimals[0] != decimals[1] or abs(float(old) - float(new)) > 1.001 * unit:
            return f"{old} is now {new}, in {printed!r}"
    return ""


@dataclass(frozen=True)
class Quote:
    """Lines of code on the page, and the file and function that should contain them."""

    path: str
    function: str
    text: str


def quotes(blocks: Sequence[Block]) -> Iterator[Quote]:
    """Yield all quotations.

    Raises:
        ValueError: the line above one does not name its source.
    """
    for before, block in pairwise(blocks):
        if block.kind == "py":
            source = _QUOTE.match(before.text.rstrip().rpartition("\n")[2])
            if source is None:
                raise ValueError(f"{PAGE.name}:{block.line}: the line above names no source")
            yield Quote(source[1], source[2], block.text)


def contains_quote(quote: Quote, source: str) -> bool:
    """Return whether the function in the source contains the quoted lines consecutively."""
    node: ast.AST = ast.parse(source)
    for name in quote.function.split("."):
        found = [child for child in ast.iter_child_nodes(node) if _name_of(child) == name]
        if len(found) != 1:
            return False
        node = found[0]
    body = [line.strip() for line in (ast.get_source_segment(source, node) or "").splitlines()]
    wanted = [line.strip() for line in quote.text.splitlines()]
    return any(body[i : i + len(wanted)] == wanted for i in range(len(body)))


def _name_of(node: ast.AST) -> str | None:
    return node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else None


def model_digest() -> str:
    """Return the SHA-256 of the weights of the tour's model."""
    file = find_folder(SHIPPED_MODEL) / WEIGHTS_FILE
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> None:
    """Update the page and its figures."""
    page = PAGE.read_text(encoding="utf-8")
    blocks = blocks_of(_DIGEST.sub(model_digest(), page))
    printed, names = run(blocks)
    PAGE.write_text(with_outputs(blocks, printed), encoding="utf-8")
    for name, picture in pictures(names).items():
        (FOLDER / name).write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
