"""Parsing of CSV cells into the values of a JSON row.

An empty cell is null. A cell of answers is a list or an object in JSON, as a Python literal or as
numpy prints it, since pandas writes all three; columns with a singular name may be plain text.
"""

import ast
import io
import json
import re
import tokenize
from collections.abc import Callable
from typing import Any

from bertqa.data.rows import ID_KEYS
from bertqa.errors import UserError, shown

_BOOLEANS = dict.fromkeys(("true", "1", "1.0"), True) | dict.fromkeys(("false", "0", "0.0"), False)


class _Plain(ast.NodeTransformer):
    """Replaces f(x) by x and nan by None: pandas writes ``array(['a'], dtype=object)`` and such."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if len(node.args) != 1:  # in Series(['a'], [3]) the second argument matters
            raise ValueError("a call must have one argument")
        return self.visit(node.args[0])

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(None) if node.id == "nan" else node


_VALUES = {tokenize.STRING, tokenize.NUMBER, tokenize.NAME}


def _with_commas(cell: str) -> str:
    """Insert commas between values: numpy prints ``['a' 'b']``, which Python reads as 'ab'."""
    words: list[str] = []
    end = None  # end of the previous value
    for token in tokenize.generate_tokens(io.StringIO(cell).readline):
        if token.type == tokenize.NL:
            continue
        is_value = token.type in _VALUES
        if end and (is_value or token.string in ("[", "{", "...", "-")):
            if end == token.start:  # such as 'it''s', which is not valid Python either
                raise ValueError("two values without a blank between them")
            words.append(",")
        words.append(token.string)
        end = token.end if is_value or token.string in (")", "]", "}", "...") else None
    return " ".join(words)


def _literal(cell: str) -> Any:
    """Parse JSON, a Python literal or a printed numpy array, without running code.

    Raises:
        ValueError: it is none of them.
    """
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(_Plain().visit(ast.parse(_with_commas(cell.strip()), mode="eval")))
    except (TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ValueError("not a literal") from error


def _literal_cell(cell: str, name: str, location: str) -> Any:
    try:
        return _literal(cell) if cell.strip() else None
    except ValueError as error:
        raise UserError(
            f"{location}: {name} must be JSON or a Python literal, got {shown(cell)}: "
            'write {"text": [...], "answer_start": [...]}'
        ) from error


# Lists as programs print them; a plain text may begin with a bracket, too.
_PRINTED = re.compile(
    r"""\s*((Series|array)\(|\[\s*\]\s*$|[\[{]+\s*(['"]|np\.|array\())|.*\n(.*, )?dtype: \w+$""",
    re.DOTALL,
)


def _text_cell(cell: str, name: str, location: str) -> Any:
    """Parse one answer, or several as in ``answers``."""
    if _PRINTED.match(cell):
        return _literal_cell(cell, name, location)
    return cell if cell.strip() else None


def _start_cell(cell: str, name: str, location: str) -> Any:
    # pandas writes integers as 12.0 if a cell of the column is missing.
    if number := re.fullmatch(r"(-?[0-9]{1,18})(\.0+)?", cell):
        return int(number[1])
    return _literal_cell(cell, name, location) if cell.lstrip()[:1] == "[" else cell or None


_CELLS: dict[str, Callable[[str, str, str], Any]] = {
    "is_impossible": lambda cell, name, location: _BOOLEANS.get(cell.lower(), cell or None),
    "answers": _literal_cell,
    "answers.text": _literal_cell,
    "answers.answer_start": _literal_cell,
    "detected_answers": _literal_cell,
    "answer": _text_cell,
    "answer_text": _text_cell,
    "text": _text_cell,
    "answer_start": _start_cell,
} | dict.fromkeys(ID_KEYS, lambda cell, name, location: cell or None)


def csv_row(cells: dict[str, str], location: str) -> dict[str, Any]:
    """Convert cells to the values of a JSON row."""
    return {
        name: _CELLS[name](cell, name, location) if name in _CELLS else cell
        for name, cell in cells.items()
    }
