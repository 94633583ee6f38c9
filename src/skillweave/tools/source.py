"""Check and rewrite Python code that a model wrote, without running it."""

from __future__ import annotations

import ast
import re
import threading
import unicodedata
import warnings

LONGEST = 200_000
"""Most characters of a program."""

OWN = "_sb_"
"""The prefix of the sandbox's own names; no code may mention them."""

_DELETES = re.compile(r"\bas(?:\\?\s)+(?:eval|exec|locals)\b")
"""``except ... as eval``, which deletes the name at its end, so that Python's own ``eval`` would come back."""

_parsing = threading.Lock()  # the warnings filter is shared by the whole process


def parse(text: str) -> ast.Module:
    """The syntax tree of a text, which is not run. Raises ``SyntaxError`` if it cannot be parsed or is too long."""
    check_length(text)
    try:
        with _parsing, warnings.catch_warnings():  # for example about a backslash in a string
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(str(error) or "the text is nested too deeply") from error


def check_length(text: str) -> None:
    """Raise ``SyntaxError`` for a text of more than :data:`LONGEST` characters."""
    if len(text) > LONGEST:
        raise SyntaxError(f"the text has {len(text):,} characters, more than {LONGEST:,}")


def check_names(text: str) -> None:
    """Raise ``SyntaxError`` for a text that mentions a name of the sandbox's own, in any Unicode form.

    The same holds for a text that could undo the sandbox's own versions of ``eval``, ``exec`` and ``locals``.
    """
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    if OWN in plain:
        raise SyntaxError(f"names with '{OWN}' are the sandbox's own: choose other names")
    if found := _DELETES.search(plain):
        raise SyntaxError(f"{found[0]!r} is not allowed here: choose another name")


def keep_value(code: str, name: str) -> tuple[str, bool | None]:
    """The code changed to assign its last expression to ``name``, and whether it ends with an expression.

    The second is None if this version of Python cannot parse the code. The sandbox may still be able to.
    """
    code = code.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    try:
        body = parse(code).body
    except SyntaxError:
        return code, None
    if not body or not isinstance(body[-1], ast.Expr):
        return code, False
    last = body[-1]
    assert last.end_lineno is not None
    assert last.end_col_offset is not None
    lines = code.split("\n")
    start = _place(lines, last.lineno, last.col_offset)
    end = _place(lines, last.end_lineno, last.end_col_offset)
    return f"{code[:start]}{name} = ({code[start:end]}\n){code[end:]}", True


def _place(lines: list[str], line: int, column: int) -> int:
    """The index in the text, for a line counted from 1 and a column counted in bytes of UTF-8."""
    before = sum(len(text) + 1 for text in lines[: line - 1])
    return before + len(lines[line - 1].encode()[:column].decode())
