"""A request as its caller sees it: a stream of text and tokens, a reply, and a way to cancel it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from skillweave.base.generate import AnswerReader
from skillweave.engine.interface import AnswerToken, Chunk, CountedReply, End, RequestCancelled
from skillweave.weave import Route


class Pieces:
    """Decodes an answer piece by piece; the pieces join to the text of the whole.

    A character whose bytes are spread over several tokens is held back until it is complete. Only the last tokens are
    decoded again: a tokenizer may drop the space at the beginning of a text, so each piece is the difference between
    two texts that begin at the same token.
    """

    def __init__(self, reader: AnswerReader) -> None:
        self._reader = reader
        self._ids: list[int] = []
        self._begin = self._read = 0

    def add(self, ids: Sequence[int]) -> str:
        """Return the text that is certain after these tokens; it may be empty."""
        self._ids += ids
        return self._new(complete=False)

    def rest(self) -> str:
        """Return the text that is left when the answer has ended."""
        return self._new(complete=True)

    def _new(self, *, complete: bool) -> str:
        known = self._reader.read(self._ids[self._begin : self._read])
        text = self._reader.read(self._ids[self._begin :])
        if len(text) <= len(known) or (text.endswith("\N{REPLACEMENT CHARACTER}") and not complete):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return text[len(known) :]


class StopText:
    """The text of an answer up to the stop string that is complete first.

    Text that may be the beginning of a stop string is held back.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._held = ""
        self.matched: str | None = None

    def add(self, piece: str, *, complete: bool = False) -> str:
        """Return the text that is certain. Once :attr:`matched` is set, there is no more."""
        if self.matched is not None:
            return ""
        text = self._held + piece
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            # The one that is complete first, so that it does not matter how the text is cut into pieces.
            at, self.matched = min(found, key=lambda one: (one[0] + len(one[1]), one[0]))
            self._held = ""
            return text[:at]
        kept = 0 if complete else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that is a beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class LiveGeneration:
    """One request that an engine is answering. The engine feeds it, in its event loop.

    ``settled`` is called once, when the request has ended. ``caller`` is the task that submitted the request: if it
    ends because it is cancelled, the request is cancelled too.

    The chunks join to the text of the reply. One kind of reply has more: if the prompt opened a thought in which the
    answer was cut off, the thought's opening marker is put before the text.
    """

    def __init__(
        self, stop: Sequence[str], caller: asyncio.Task[Any] | None, settled: Callable[[LiveGeneration], None]
    ) -> None:
        self._stop = StopText(stop)
        self._caller = caller
        self._settled = settled
        self._changed = asyncio.Event()
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._tokens: list[AnswerToken] = []
        self._completion_tokens = 0
        self._prompt: Sequence[int] = ()
        self._route: Route | None = None
        self._reader: AnswerReader | None = None
        self._pieces: Pieces | None = None
        self.ended: End | None = None
        self.error: BaseException | None = None
        if caller is not None:
            caller.add_done_callback(self._caller_ended)

    @property
    def done(self) -> bool:
        """Whether there will be no more tokens."""
        return self.ended is not None or self.error is not None

    @property
    def prompt_tokens(self) -> int:
        """The tokens of the prompt; 0 as long as the router has not chosen."""
        return len(self._prompt)

    @property
    def completion_tokens(self) -> int:
        """The tokens that the model has computed so far; the end token counts."""
        return self._completion_tokens

    def cancel(self) -> None:
        """Give the request up: it leaves the queue, or its place is free at the next step. A finished one stays."""
        self.settle(error=RequestCancelled("the request was cancelled"))

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Yield the answer as it is written, from its beginning. Raises the error of the request if it fails."""
        texts = tokens = 0
        while True:
            if texts < len(self._texts) or tokens < len(self._tokens):
                text, new = "".join(self._texts[texts:]), tuple(self._tokens[tokens:])
                texts, tokens = len(self._texts), len(self._tokens)
                yield Chunk(text, new)
            elif self.error is not None:
                raise self.error
            elif self.ended is not None:
                return
            else:
                await self._news()

    async def reply(self) -> CountedReply:
        """Return the whole answer when it is complete. Raises the error of the request if it fails."""
        while not self.done:
            await self._news()
        if self.error is not None:
            raise self.error
        assert self._reader is not None
        assert self._route is not None
        assert self.ended is not None
        if self._stop.matched is not None:
            text = "".join(self._texts)
        else:
            text = self._reader.text(self._prompt, self._ids, self.ended == "answer")
        return CountedReply(
            text,
            self._route.pack,
            self._route.confidence,
            self.ended,
            prompt_tokens=len(self._prompt),
            completion_tokens=self._completion_tokens,
            tokens=tuple(self._tokens),
            matched=self._stop.matched,
        )

    # -- called by the engine, in its event loop -----------------------------------------------------------------------

    def begin(self, prompt: Sequence[int], route: Route, reader: AnswerReader) -> None:
        """Say what the prompt is in tokens, and how the answer is read. It comes before the first token."""
        self._prompt, self._route, self._reader = prompt, route, reader
        self._pieces = Pieces(reader)

    def take(self, token: AnswerToken | None, ended: End | None = None) -> None:
        """Take a token of the answer, or its end; an end token is not passed. What comes after the end is ignored."""
        if self.done:
            return
        assert self._pieces is not None
        self._completion_tokens += 1
        if token is not None:
            self._ids.append(token.id)
            self._tokens.append(token)
            self._write(self._stop.add(self._pieces.add([token.id])))
        if ended is not None and self._stop.matched is None:
            self._write(self._stop.add(self._pieces.rest(), complete=True))
        if self._stop.matched is not None:
            self.settle("answer")
        elif ended is not None:
            self.settle(ended)
        else:
            self._changed.set()

    def settle(self, ended: End | None = None, error: BaseException | None = None) -> None:
        """End the request, once."""
        if not self.done:
            self.ended, self.error = ended, error
            self._changed.set()
            if self._caller is not None:
                self._caller.remove_done_callback(self._caller_ended)
            self._settled(self)

    def _write(self, text: str) -> None:
        if text:
            self._texts.append(text)

    def _caller_ended(self, caller: asyncio.Task[Any]) -> None:
        if caller.cancelled():
            self.cancel()

    async def _news(self) -> None:
        """Wait until something changes."""
        # Nothing is missed: what has happened was looked at just before, without a pause in between.
        self._changed.clear()
        try:
            await self._changed.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
