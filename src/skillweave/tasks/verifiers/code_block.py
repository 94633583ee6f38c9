"""Which part of an answer is its program."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

from skillweave.tasks.verifiers.code_case import missing_names, top_level_names
from skillweave.tools.source import parse

_OPENS = re.compile(r"^[ \t]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?(?P<fence>`{3,}|~{3,})[ \t]*(?P<tag>[^\n`]*)$")
_PYTHON = re.compile(r"^(?:i?python|py|pycon)[\d.]*$")
_ANY_LANGUAGE = ("", "code", "solution", "answer", "program", "script")
_SAYS_OUTPUT = re.compile(
    r"\b(?:outputs?|prints?|printed|results?|returns?|expected|console|terminal)\W*$", re.IGNORECASE
)
_BEGINS_CODE = re.compile(r"(?:async )?def \w+\(|class \w+\s*[:(]|import \w|from [\w.]+ import\b|@\w")
_HELPERS = 20  # blocks before the program that are looked at
_ENDS = 20  # lines at which prose behind the program may begin
_PROMPT = re.compile(r"^[ \t]*>>>(?: |$)")


@dataclass(frozen=True)
class _Block:
    text: str
    tag: str
    before: str
    """The last words before the block; empty where it follows another block at once."""


def extract_code(answer: str, names: frozenset[str] = frozenset()) -> str:
    """The program in an answer: its Python block, dedented, or the whole answer where it has no fenced block.

    A block is Python where it says so; where none does, a block without a language that is not announced as output
    and does not follow another block at once (then it is that one's output). Of several the last counts that defines
    the ``names`` which the cases call, so that an example of use after the program does not replace it; where none
    defines them, the last. Earlier blocks that define what this one uses (a helper, an import) are put before it. A
    block that is cut off at the end counts. Of a ``>>>`` session only what was typed counts. Where no fence stands
    around the program, prose before and behind it is left out.
    """
    answer = answer.lstrip("\N{ZERO WIDTH NO-BREAK SPACE}")
    blocks = _blocks(answer)
    tagged = [block for block in blocks if _PYTHON.match(block.tag)]
    plain = [block for block in blocks if block.tag in _ANY_LANGUAGE and not _is_output(block)]
    candidates = [_typed(textwrap.dedent(block.text)) for block in tagged or plain]
    if not candidates:
        return _without_prose(_typed(textwrap.dedent(answer)))
    defining = [at for at, text in enumerate(candidates) if names and names <= top_level_names(text)]
    chosen = (defining or range(len(candidates)))[-1]
    return _with_helpers(candidates[chosen], candidates[:chosen])


def _with_helpers(program: str, earlier: list[str]) -> str:
    """The program behind those of the ``earlier`` texts that define names which it uses and does not define."""
    for text in reversed(earlier[-_HELPERS:]):
        missing = missing_names(program)
        if missing & top_level_names(text):
            program = f"{text}\n{program}"
    return program


def _without_prose(text: str) -> str:
    """The lines of a text that are its program; the text as it is where it is Python as a whole, or none is found.

    They begin with the first line that begins a definition, and end where the longest text that is Python ends.
    """
    lines = text.splitlines()
    first = next((at for at, line in enumerate(lines) if _BEGINS_CODE.match(line)), None)
    if first is None or _is_python(text):
        return text
    ends = [at for at in range(first + 1, len(lines)) if lines[at][:1].strip()]
    for end in [len(lines), *reversed(ends[-_ENDS:])]:
        program = "\n".join(lines[first:end]) + "\n"
        if _is_python(program):
            return program
    return text


def _is_python(text: str) -> bool:
    try:
        parse(text)
    except SyntaxError:
        return False
    return True


def _blocks(answer: str) -> list[_Block]:
    """The fenced blocks, in order."""
    blocks: list[_Block] = []
    fence, tag, before = "", "", ""
    lines: list[str] = []
    follows = False
    for line in answer.splitlines():
        opening = _OPENS.match(line)
        if not fence:
            if opening:
                fence, tag, lines = opening["fence"], _language(opening["tag"]), []
            elif line.strip():
                before, follows = line.strip(), False
        elif (
            opening
            and not opening["tag"].strip()
            and opening["fence"].startswith(fence)
            and line.lstrip()[0] == fence[0]
        ):
            blocks.append(_Block("\n".join(lines) + "\n", tag, "" if follows else before or "."))
            fence, before, follows = "", "", True
        else:
            lines.append(line)
    if fence:
        blocks.append(_Block("\n".join(lines) + "\n", tag, "" if follows else before or "."))
    return blocks


def _language(tag: str) -> str:
    """The first word after a fence, in small letters: ``python`` of ``{.Python}`` or ``python title=x``."""
    words = re.split(r"[\s{},:=]+", tag.strip(" \t{}").lower())
    word = words[0].lstrip(".")
    return "python" if word.endswith(".py") else word


def _is_output(block: _Block) -> bool:
    return not block.before or bool(_SAYS_OUTPUT.search(block.before))


def _typed(text: str) -> str:
    """What was typed in a ``>>>`` session, without what was shown; any other text as it is."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not _PROMPT.match(first):
        return text
    typed = [line for line in text.splitlines() if re.match(r"^[ \t]*(?:>>>|\.\.\.)(?: |$)", line)]
    return "\n".join(re.sub(r"^[ \t]*(?:>>>|\.\.\.) ?", "", line) for line in typed) + "\n"
