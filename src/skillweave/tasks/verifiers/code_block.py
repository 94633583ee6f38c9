"""Find the program in an answer."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

from skillweave.tasks.verifiers.code_case import missing_names, top_level_names
from skillweave.tools.source import parse

_OPENS = re.compile(r"^[ \t]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?(?P<fence>`{3,}|~{3,})[ \t]*(?P<tag>[^\n`]*)$")
_OPENS_BEHIND_TEXT = re.compile(
    r"^[^`\n]{0,200}[\s:.](?P<fence>`{3,})(?P<tag>(?:python|py)[\d.]*)[ \t]*$", re.IGNORECASE
)
_CLOSES_BEFORE_TEXT = re.compile(r"^[ \t]*(?P<fence>`{3,})[ \t]+\S")
_PYTHON = re.compile(r"^(?:i?python|py|pycon)[\d.]*$")
_ANY_LANGUAGE = ("", "code", "solution", "answer", "program", "script")
_SAYS_OUTPUT = re.compile(
    r"\b(?:outputs?|prints?|printed|results?|returns?|expected|console|terminal)\W*$", re.IGNORECASE
)
_SAYS_WRONG = re.compile(
    r"\b(?:(?:do\s+not|don't|never)\s+(?:write|do|use|code)(?:\s+(?:it|that|code))?(?:\s+(?:like\s+this|this(?:\s+way)?))?"
    r"|(?P<fault>wrong|incorrect|buggy|mistake)(?:\s+(?:version|code|way|solution|would\s+be|is))?)\W*$",
    re.IGNORECASE,
)
_SAYS_REPAIRED = re.compile(
    r"\b(?:without|fix\w*|correct\w*|avoid\w*|repair\w*|remov\w*|instead|no|not|was|were|above|earlier|previous)\b|n't\b",
    re.IGNORECASE,
)
_BEGINS_CODE = re.compile(r"(?:async )?def \w+\(|class \w+\s*[:(]|import \w|from [\w.]+ import\b|@\w")
_HELPERS = 20  # how many blocks before the program are searched for helpers
_ENDS = 20  # how many lines are tried as the start of the text after the program
_TRIES = 20  # how many lines of an answer that end with a fence are tried as the last line of a program
_PROMPT = re.compile(r"^[ \t]*>>>(?: |$)")


@dataclass(frozen=True)
class _Block:
    text: str
    tag: str
    before: str
    """The last line of text before the block; empty if it follows another block directly."""


def extract_code(answer: str, names: frozenset[str] = frozenset()) -> str:
    """Return the program in an answer: its Python block, dedented, or the whole answer if it has no fenced block.

    - A block is Python if its tag says so. If no tag does, a block without a language counts, unless it is announced as
      output or follows another block directly (then it is the output of that block).
    - If there are several, the last one that defines all ``names``, which the cases call, is the program. So an example
      of its use after the program does not replace it, also if it imports the program. If none defines them, it is the
      last block.
    - Earlier blocks that define what the program uses (a helper, an import) are put before it.
    - A block that is announced as wrong ("Do not write:") is left out, if there are others.
    - A block that is cut off at the end of the answer counts, and so does one whose closing fence stands on the last
      line of the program.
    - From a ``>>>`` session only the input counts.
    - Without a fence around the program, text before and after it is left out.
    """
    answer = answer.lstrip("\N{ZERO WIDTH NO-BREAK SPACE}")
    blocks = _blocks(answer)
    blocks = [block for block in blocks if not _is_wrong(block)] or blocks
    tagged = [block for block in blocks if _PYTHON.match(block.tag)]
    plain = [block for block in blocks if block.tag in _ANY_LANGUAGE and not _is_output(block)]
    candidates = [_typed(textwrap.dedent(block.text)) for block in tagged or plain]
    if not candidates:
        return _without_prose(_typed(textwrap.dedent(answer)))
    binding = [at for at, text in enumerate(candidates) if names and names <= top_level_names(text)]
    defining = [at for at in binding if names & top_level_names(candidates[at], imports=False)]
    chosen = (defining or binding or range(len(candidates)))[-1]
    return _with_helpers(candidates[chosen], candidates[:chosen])


def _with_helpers(program: str, earlier: list[str]) -> str:
    """Return the program after those ``earlier`` texts that define names which it uses but does not define."""
    for text in reversed(earlier[-_HELPERS:]):
        missing = missing_names(program)
        if missing & top_level_names(text):
            program = f"{text}\n{program}"
    return program


def _without_prose(text: str) -> str:
    """Return the lines of a text that are its program; the whole text if it is Python, or if no program is found.

    The program starts at the first line that starts a definition, and is as long as possible.
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
    """Return the fenced blocks, in order."""
    blocks: list[_Block] = []
    fence, tag, before = "", "", ""
    lines: list[str] = []
    follows, tries = False, _TRIES

    def end_block() -> None:
        blocks.append(_Block("\n".join(lines) + "\n", tag, "" if follows else before or "."))

    for line in answer.splitlines():
        opening = _OPENS.match(line) or (None if fence else _OPENS_BEHIND_TEXT.match(line))
        if not fence:
            if opening:
                fence, tag, lines = opening["fence"], _language(opening["tag"]), []
            elif line.strip():
                before, follows = line.strip(), False
            continue
        closes = opening and not opening["tag"].strip() and opening["fence"].startswith(fence)
        if closes and line.lstrip()[0] == fence[0]:
            end_block()
            fence, before, follows = "", "", True
            continue
        prose = _CLOSES_BEFORE_TEXT.match(line)
        if tries and prose and prose["fence"].startswith(fence):
            tries -= 1
            if _is_python(textwrap.dedent("\n".join(lines))):
                end_block()
                fence, before, follows = "", line.strip(), False
                continue
        lines.append(line)
        if tries and line.rstrip().endswith(fence) and "#" not in line:  # a comment may end with anything
            tries -= 1
            lines[-1] = line.rstrip().removesuffix(fence)
            if _is_python(textwrap.dedent("\n".join(lines))):
                end_block()
                fence, before, follows = "", "", True
            else:
                lines[-1] = line
    if fence:
        end_block()
    return blocks


def _language(tag: str) -> str:
    """The first word after a fence, in small letters: ``python`` of ``{.Python}`` or ``python title=x``."""
    words = re.split(r"[\s{},:=]+", tag.strip(" \t{}").lower())
    word = words[0].lstrip(".")
    return "python" if word.endswith(".py") else word


def _is_wrong(block: _Block) -> bool:
    """Whether a block is announced as wrong: "A common mistake is:", but not "Without the mistake:"."""
    said = _SAYS_WRONG.search(block.before[-200:])
    if said is None or not said["fault"]:
        return said is not None
    return _SAYS_REPAIRED.search(re.split(r"[.!?;]\s", said.string[: said.start()])[-1]) is None


def _is_output(block: _Block) -> bool:
    return not block.before or bool(_SAYS_OUTPUT.search(block.before))


def _typed(text: str) -> str:
    """What was typed in a ``>>>`` session, without what was shown; any other text as it is."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not _PROMPT.match(first):
        return text
    typed = [line for line in text.splitlines() if re.match(r"^[ \t]*(?:>>>|\.\.\.)(?: |$)", line)]
    return "\n".join(re.sub(r"^[ \t]*(?:>>>|\.\.\.) ?", "", line) for line in typed) + "\n"
