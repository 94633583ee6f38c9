"""A request as its caller sees it: a stream of text, a reply, and a way to cancel it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from skillweave.base.generate import AnswerReader
from skillweave.engine.batch import Event, RowEnd, Work
from skillweave.weave import Reply


class RequestCancelled(Exception):
    """A request has no answer, because its caller cancelled it or the engine was closed."""


@dataclass(frozen=True, kw_only=True)
class CountedReply(Reply):
    """A reply with its tokens. The completion includes the end token, which the model also had to compute."""

    prompt_tokens: int
    completion_tokens: int


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


class Generation:
    """One request that the engine is answering.

    ``async for piece in generation`` gives the text as it is written, from the beginning; :meth:`reply` gives the whole
    answer. Both may be used, also several times. Both raise the error of the request if it fails, and
    :class:`RequestCancelled` if it is cancelled. A task that is cancelled while it waits here cancels the request.

    The pieces join to the text of the reply. One kind of reply has more: if the prompt opened a thought in which the
    answer was cut off, the thought's opening marker is put before the text.

    ``caller`` is the task that submitted the request: if it ends because it is cancelled, the request is cancelled too.
    ``settled`` is called once, when the request has ended.
    """

    def __init__(self, work: Work, caller: asyncio.Task[Any] | None, settled: Callable[[Generation], None]) -> None:
        self.work = work
        self._caller = caller
        self._settled = settled
        self._ids: list[int] = []
        self._completion_tokens = 0
        self._changed = asyncio.Event()
        self.ended: RowEnd | None = None
        self.error: BaseException | None = None
        if caller is not None:
            caller.add_done_callback(self._caller_ended)

    @property
    def done(self) -> bool:
        """Whether there will be no more tokens."""
        return self.ended is not None or self.error is not None

    def cancel(self) -> None:
        """Give the request up: it leaves the queue, or its row ends at the next step. A finished one stays as it is."""
        self.settle(error=RequestCancelled("the request was cancelled"))

    async def reply(self) -> CountedReply:
        """Return the whole answer when it is complete."""
        while not self.done:
            await self._news()
        if self.error is not None:
            raise self.error
        prepared = self.work.prepared
        assert prepared is not None
        assert self.ended is not None
        return CountedReply(
            prepared.speaker.reader.text(prepared.ids, self._ids, self.ended == "answer"),
            prepared.route.pack,
            prepared.route.confidence,
            self.ended,
            prompt_tokens=len(prepared.ids),
            completion_tokens=self._completion_tokens,
        )

    async def __aiter__(self) -> AsyncIterator[str]:
        pieces: Pieces | None = None
        seen = 0
        while True:
            if seen < len(self._ids):
                if pieces is None:
                    assert self.work.prepared is not None
                    pieces = Pieces(self.work.prepared.speaker.reader)
                new, seen = self._ids[seen:], len(self._ids)
                if piece := pieces.add(new):
                    yield piece
            elif self.error is not None:
                raise self.error
            elif self.ended is not None:
                if pieces is not None and (piece := pieces.rest()):
                    yield piece
                return
            else:
                await self._news()

    # -- called by the engine, in its event loop -----------------------------------------------------------------------

    def take(self, event: Event) -> None:
        """Take what the worker delivers. What comes after the end is ignored: the request was cancelled meanwhile."""
        if self.done:
            return
        if event.token is not None:
            self._ids.append(event.token)
        if event.error is None:
            self._completion_tokens += 1
        if event.ended is not None or event.error is not None:
            self.settle(event.ended, event.error)
        else:
            self._changed.set()

    def settle(self, ended: RowEnd | None = None, error: BaseException | None = None) -> None:
        """End the request, once."""
        if not self.done:
            self.ended, self.error = ended, error
            self._changed.set()
            if self._caller is not None:
                self._caller.remove_done_callback(self._caller_ended)
            self._settled(self)

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
