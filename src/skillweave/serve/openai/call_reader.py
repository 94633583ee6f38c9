"""Read an answer that may call tools while it is written: text streams, the markup of calls is held back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skillweave.base.chat import text_of
from skillweave.base.ends import control_tokens
from skillweave.base.generate import AnswerReader
from skillweave.base.thoughts import KNOWN
from skillweave.engine.generation import Pieces
from skillweave.engine.interface import AnswerChunk, CountedReply
from skillweave.tools.call import Call
from skillweave.tools.turn import BEGINNINGS, FENCE, read_turn


@dataclass(frozen=True)
class ReadEnd:
    """What is left when an answer has ended: text that was held back, or the calls."""

    text: str
    calls: tuple[Call, ...] = ()


class CallReader:
    """Reads one answer: :meth:`add` returns the text that no call can begin in, :meth:`end` the rest.

    - ``opened``: the marker of a thought that the prompt opened, or ""
    - The text from the first mark of a call on is held back until the answer has ended. So is a turn that begins with
      ``{``, ``[``, a code fence or the name of a tool, which may be a bare call. If no call can be read from it, it is
      text after all.
    - A thought streams as text; calls in it are not made.
    - If one call of a turn cannot be read, none is made, and the whole turn is text: half a turn must not be executed.
    """

    def __init__(self, tokenizer: Any, tools: Sequence[Mapping[str, Any]], opened: str = "") -> None:
        self._tools, self._opened = tools, opened
        self._closing = dict(KNOWN).get(opened, "")
        self._tokenizer = tokenizer
        # Marks that are special tokens are not in the text of the engine: the text is then made from the tokens.
        self._special = any(map(control_tokens(tokenizer).search, BEGINNINGS))
        self._pieces = Pieces(_WithSpecial(tokenizer)) if self._special else None
        self._ids: list[int] = []
        self._whole = ""
        self._sent = 0
        self._at_start = True
        self._holds = False

    def add(self, chunk: AnswerChunk, *, may_stop: bool = False) -> str:
        """Return the text that is certain now. ``may_stop``: the answer has stop strings, which its tokens may hold."""
        if self._pieces is None:
            self._whole += chunk.text
        else:
            self._ids += [token.id for token in chunk.tokens]
            self._whole += self._pieces.add([token.id for token in chunk.tokens])
            if may_stop:
                return ""
        return self._certain()

    def end(self, reply: CountedReply) -> ReadEnd:
        """Return what is left of a complete answer."""
        if self._pieces is not None:
            self._whole = text_of(self._tokenizer, self._ids, special=True)
            if reply.matched is not None:
                self._whole = self._whole.partition(reply.matched)[0]
        turn = read_turn(self._opened + self._whole, self._tools)
        if not turn.calls or not all(isinstance(call, Call) for call in turn.calls):
            return ReadEnd(self._whole[self._sent :])
        return ReadEnd(self._certain(), tuple(call for call in turn.calls if isinstance(call, Call)))

    def _certain(self) -> str:
        """Return the new text before the first mark, without what may begin one and white space before that."""
        text, at = self._whole, self._sent
        while not self._holds:
            if self._closing:
                end = text.find(self._closing, at)
                if end < 0:
                    return self._up_to(len(text) - _overlap(text, at, (self._closing,)))
                at, self._closing = end + len(self._closing), ""
                continue
            if self._at_start:
                begin = len(text) - len(text[at:].lstrip())
                rest = text[begin:]
                if not rest or any(opening.startswith(rest) and opening != rest for opening, _ in KNOWN):
                    return self._up_to(at)
                opened = next((pair for pair in KNOWN if rest.startswith(pair[0])), None)
                if opened is not None:
                    at, self._closing = begin + len(opened[0]), opened[1]
                    continue
                bare = _is_bare(rest, self._tools) if self._tools else False
                if bare is None:
                    return self._up_to(at)
                self._at_start, self._holds = False, bare
                if bare:
                    return self._up_to(at)
            found = [index for mark in BEGINNINGS if (index := text.find(mark, at)) >= 0]
            certain = min(found) if found else len(text) - _overlap(text, at, BEGINNINGS)
            self._holds = bool(found)
            return self._up_to(max(at, len(text[:certain].rstrip())))
        return ""

    def _up_to(self, end: int) -> str:
        new = self._whole[self._sent : end]
        self._sent = max(self._sent, end)
        return new


class _WithSpecial(AnswerReader):
    """Reads tokens with the special ones."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self._special = True


def _is_bare(text: str, tools: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether a turn that begins so may be a call without a mark; None if it is too short to say."""
    if text[0] in "{[" or FENCE.match(text):
        return True
    openings = ("print(", *(f"{tool['function']['name']}(" for tool in tools))
    if text.startswith(openings):
        return True
    is_short = any(opening.startswith(text) for opening in ("```", *openings))
    return None if is_short or (text.startswith("```") and "\n" not in text) else False


def _overlap(text: str, start: int, marks: Sequence[str]) -> int:
    """The length of the longest end of ``text[start:]`` that is the beginning of a mark."""
    longest = min(len(text) - start, max(map(len, marks)) - 1)
    return next((size for size in range(longest, 0, -1) if any(mark.startswith(text[-size:]) for mark in marks)), 0)
