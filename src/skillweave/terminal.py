"""What is printed cannot steer the terminal: a console and a function that show control characters as text.

Names, answers, scores, paths and error texts come from files and models. An escape sequence in them could rename the
window, hide lines, or make one text look like another; a mark of direction could show letters in another order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# Control characters (C0 without tab and line feed, DEL, C1), halves of characters, separators of lines and paragraphs,
# marks that change the direction of what follows, and characters that are invisible. The joiners U+200C and U+200D
# stay: words and emoji are written with them.
_STEERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    r"\ufff9-\ufffb\U000e0000-\U000e0fff]"
)


def harmless(text: str) -> str:
    r"""The text with every character that could steer a terminal written as Python writes it, as ``\x1b``.

    Tabs and line feeds stay. Marks of a JSON text become escapes of JSON by :func:`harmless_json` instead.
    """
    return _STEERS.sub(lambda match: ascii(match[0])[1:-1], text)


def printable(text: str) -> str:
    """The text on one line, where it cannot steer the terminal: for what is cut to a width before it is printed."""
    return harmless(text.replace("\n", " "))


def one_line(value: Any, width: int = 200) -> str:
    """Any value in one line of at most ``width`` characters, without control characters; what is cut is said."""
    text = printable(str(value))
    return text if len(text) <= width else f"{text[:width]}... ({len(text):,} characters, cut)"


def harmless_json(text: str) -> str:
    r"""A JSON text of the same value in which what could steer a terminal is written as JSON's ``\u001b``."""
    return _STEERS.sub(lambda match: _json_escape(match[0]), text)


def for_file(text: str, file: IO[str]) -> str:
    """The text as it may be written to ``file``: made :func:`harmless` where that is a terminal.

    A file or a pipe gets the text as it is, because what a model wrote is data there.
    """
    return harmless(text) if file.isatty() else text


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


class SafeConsole(Console):
    """A rich console on which no printed text is markup, and none can steer the terminal.

    Styles are given as arguments or as :class:`rich.text.Text`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of rich, harmless: here all that is printed passes, the cells of tables and the bars too."""
        for segment in super().render(renderable, options):
            if segment.control or not _STEERS.search(segment.text):
                yield segment
            else:
                yield Segment(harmless(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Let the command line end: whoever read what we print has gone away."""
        self.quiet = True
        raise BrokenPipeError
