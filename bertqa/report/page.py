"""Rendering of HTML pages: self-contained, usable without scripts, in light and dark mode.

The templates, ``*.jinja``, are in the folder of the code that renders them. All data is escaped;
only charts of report/charts.py, styles and scripts of this package are inserted unescaped.
"""

import base64
import hashlib
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bertqa.data.text import shortened, visible
from bertqa.errors import counted

_ROOT = Path(__file__).parents[1]


def render(template: str, *, title: str, script: str = "", **data: Any) -> str:
    """Render a template.

    Args:
        template: its path below bertqa/.
        script: the script of the page, which is inserted at its end.
    """
    return _environment().get_template(template).render(data, title=title, script=script)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_ROOT),
        autoescape=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
        keep_trailing_newline=True,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "counted": counted,
        "file": lambda path: (_ROOT / path).read_text(encoding="utf-8"),
        "pieces": _pieces,
        "shortened": shortened,
        "visible": visible,
        "sha256": lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
    }
    return environment


def _pieces(text: str) -> list[str]:
    """Split a text into plain pieces and escapes of invisible characters, alternating."""
    return visible(text, "\0{}\0".format).split("\0")  # visible() leaves no other \0


def clean(text: str) -> str:
    """Replace each character that HTML does not allow by a visible symbol."""
    return "".join(map(_picture, text.replace("\r\n", "\n")))


def _picture(character: str) -> str:
    number = ord(character)
    if number < 0x20 and character not in "\t\n":
        return chr(0x2400 + number)  # Unicode's control pictures
    if number == 0x7F:
        return "\u2421"
    is_noncharacter = number & 0xFFFE == 0xFFFE or 0xFDD0 <= number < 0xFDF0
    is_bad = is_noncharacter or (unicodedata.category(character) in ("Cc", "Cs") and number > 0x7F)
    return "\ufffd" if is_bad else character
