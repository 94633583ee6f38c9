"""Printed text cannot control the terminal: a console and functions that show control characters as text.

Names, answers, scores, paths and error texts come from files and models. An escape sequence in them could rename the
window, hide lines, or make one text look like another; a direction mark could show letters in another order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# Control characters (C0 without tab and line feed, DEL, C1), lone surrogates, separators of lines and paragraphs,
# direction marks, and invisible characters. The joiners U+200C and U+200D stay: words and emoji need them.
_STEERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    r"\ufff9-\ufffb\U000e0000-\U000e0fff]"
)


def harmless(text: str) -> str:
    r"""The text with every character that could control a terminal written as in Python, for example ``\x1b``.

    Tabs and line feeds stay. For a JSON text, use :func:`harmless_json`, which writes JSON's escapes.
    """
    return _STEERS.sub(lambda match: ascii(match[0])[1:-1], text)


def printable(text: str) -> str:
    """The text on one line, unable to control the terminal; for texts that are cut to a width before printing."""
    return harmless(text.replace("\n", " "))


def one_line(value: Any, width: int = 200) -> str:
    """Any value on one line without control characters; beyond ``width`` characters it is cut, with a note of that."""
    text = printable(str(value))
    return text if len(text) <= width else f"{text[:width]}... ({len(text):,} characters, cut)"


def harmless_json(text: str) -> str:
    r"""A JSON text of the same value; characters that could control a terminal are JSON escapes such as ``\u001b``."""
    return _STEERS.sub(lambda match: _json_escape(match[0]), text)


def for_file(text: str, file: IO[str]) -> str:
    """The text to write to ``file``: made :func:`harmless` for a terminal, unchanged for a file or a pipe.

    In a file or a pipe, the text of a model is data.
    """
    return harmless(text) if file.isatty() else text


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


class SafeConsole(Console):
    """A rich console on which printed text is never markup and cannot control the terminal.

    Pass styles as arguments or as :class:`rich.text.Text`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of rich, made harmless. All printed text passes here, also table cells and bars."""
        for segment in super().render(renderable, options):
            if segment.control or not _STEERS.search(segment.text):
                yield segment
            else:
                yield Segment(harmless(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """End the command line: the reader of our output is gone."""
        self.quiet = True
        raise BrokenPipeError
