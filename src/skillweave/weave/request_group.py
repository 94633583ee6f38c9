"""Requests that are answered together: they become tokens, and the packed model answers them in batches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from skillweave.base import Base, generate_answers
from skillweave.base.defaults import generating_as
from skillweave.base.generate import Generated, NoProbabilities, encode_prompts
from skillweave.base.voice import Voice
from skillweave.errors import UserError
from skillweave.tools.call_format import CallFormat
from skillweave.tools.conversation import Episode, begin, converse
from skillweave.weave.journal import ReplyJournal
from skillweave.weave.packed_model import PackedModel
from skillweave.weave.request import Conversation, Reply, Request
from skillweave.weave.router import Route


def group_key(request: Request, route: Route) -> Hashable:
    """Return a key of the request: requests with the same key can be answered together."""
    if request.tools is None:
        return request.sampling
    # Every conversation has a seed of its own, so different seeds do not keep conversations apart.
    return request.tools, replace(request.sampling, seed=0), route.pack


def cannot_answer(pack: str | None, error: NoProbabilities) -> UserError:
    """Return the error for a pack (None: the plain base) whose weights give NaN or infinity."""
    who = "the plain base" if pack is None else f"the pack '{pack}'"
    return UserError(f"{who} cannot answer: {error}. Make it again, or answer without it.")


Prefix = Callable[[str | None, Sequence[int]], int]
"""A pack (None: the plain base) and the tokens of a prompt -> how many of the first of them the plain base reads."""


Keep = Callable[[Mapping[int, Reply]], object]
"""Called with replies, by the index of their request in the group, as soon as they are written."""


class RequestGroup:
    """Requests with one :func:`group_key`. First :meth:`add` each, then :meth:`encode`, then :meth:`answer`."""

    def __init__(self, base: Base, packed_model: PackedModel, prefix: Prefix) -> None:
        self._base = base
        self._packed_model = packed_model
        self._prefix = prefix
        self._requests: list[Request] = []
        self._routes: list[Route] = []
        self._voices: list[Voice] = []
        self.numbers: list[int] = []
        """the index of each request among all requests, for errors and for the order of the replies"""

    def add(self, number: int, request: Request, route: Route, voice: Voice) -> None:
        """Add a request; ``voice`` is that of the pack that answers it."""
        self.numbers.append(number)
        self._requests.append(request)
        self._routes.append(route)
        self._voices.append(voice)

    def encode(self) -> None:
        """Turn the prompts into token ids, and with tools into starts of conversations.

        Raises :class:`UserError` for a prompt that does not fit into the model's context, and for tools without a chat
        template.
        """
        model, tools = self._base.model, self._requests[0].tools
        prompts = [request.prompt for request in self._requests]
        if tools is None:
            self._ids = encode_prompts(model, self._base.tokenizer, prompts, self._voices, numbers=self.numbers)
            return
        voice = self._voices[0]
        self._call_format = tools.settings.call_format(voice.tokenizer, tools.toolbox)
        seeds = [request.sampling.seed for request in self._requests]
        self._starts = begin(model, self._call_format, prompts, seeds=seeds, numbers=self.numbers, rows=voice.rows)

    def answer(self, streamer: Any, label: str | None, journal: ReplyJournal | None) -> list[Reply]:
        """The replies in the order in which the requests were added; arguments as in ``Weave.answer``.

        Raises :class:`UserError` for a pack whose weights give NaN.
        """
        stored = {} if journal is None else journal.replies
        kept = {at: stored[number] for at, number in enumerate(self.numbers) if number in stored}

        def keep(replies: Mapping[int, Reply]) -> None:
            if journal is not None:
                journal.add({self.numbers[at]: reply for at, reply in replies.items()})

        try:
            if self._requests[0].tools is None:
                return self._write(streamer, label, kept, keep)
            return self._converse(label, kept, keep)
        except NoProbabilities as error:
            raise cannot_answer(self._routes[error.row].pack, error) from error

    def _write(self, streamer: Any, label: str | None, kept: Mapping[int, Reply], keep: Keep) -> list[Reply]:
        """Without tools: one turn for each prompt, in batches in which every row has its own pack."""
        packs = [route.pack for route in self._routes]
        alone = {name for name in packs if name is not None and self._packed_model.why_alone(name)}
        prefixes = [self._prefix(pack, ids) for pack, ids in zip(packs, self._ids, strict=True)]
        by_packs = all(pack is None or not count for pack, count in zip(packs, prefixes, strict=True))

        def reply(row: int, answer: Generated) -> Reply:
            route = self._routes[row]
            return Reply(answer.text, route.pack, route.confidence, "answer" if answer.ended else "length")

        answers = generate_answers(
            self._base.model,
            self._base.tokenizer,
            self._ids,
            self._requests[0].sampling,
            voices=self._voices,
            numbers=self.numbers,
            around_batch=lambda rows: self._packed_model.rows([packs[row] for row in rows]),
            apart=lambda row: packs[row] if packs[row] in alone else None,
            prefixes=None if by_packs else prefixes,
            kept=kept,
            written=lambda batch: keep({row: reply(row, answer) for row, (answer,) in batch.items()}),
            streamer=streamer,
            label=label,
        )
        return [reply(row, *drawn) if drawn else kept[row] for row, drawn in enumerate(answers)]

    def _converse(self, label: str | None, kept: Mapping[int, Reply], keep: Keep) -> list[Reply]:
        """With tools: conversations side by side, all with the same pack."""
        model, generation = self._base.model, self._voices[0].generation
        tools, sampling = self._requests[0].tools, self._requests[0].sampling
        assert tools is not None
        left = [at for at in range(len(self._starts)) if at not in kept]

        def reply(at: int, episode: Episode) -> Reply:
            return _reply_of(episode, self._routes[at], self._call_format)

        own_defaults = nullcontext() if generation is None else generating_as(model, generation)
        with self._packed_model.every_row(self._routes[0].pack), own_defaults:
            episodes = converse(
                model,
                self._call_format,
                tools.toolbox,
                [self._starts[at] for at in left],
                tools.settings,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                model_defaults=sampling.model_defaults,
                ended=lambda index, episode: keep({left[index]: reply(left[index], episode)}),
                label=label,
            )
        played = {at: reply(at, episode) for at, episode in zip(left, episodes, strict=True)}
        return [kept[at] if at in kept else played[at] for at in range(len(self._starts))]


def _reply_of(episode: Episode, route: Route, call_format: CallFormat) -> Reply:
    """The reply that an episode amounts to."""
    assert episode.ended is not None
    before, last = episode.ids[: episode.last_turn], episode.ids[episode.last_turn :]
    conversation = Conversation(
        call_format.text(before), call_format.text(last), episode.calls, episode.failures, episode.other_forms
    )
    return Reply(episode.answer or "", route.pack, route.confidence, episode.ended, conversation)
