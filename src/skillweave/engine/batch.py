"""One static batch: requests become rows of tokens, and the packed model answers them side by side.

Each row has its own pack, sampling, end tokens and length. A row that has ended stays in the batch until the last row
ends, and what the model computes for it is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from skillweave.base import Sampling
from skillweave.base.batching import pad_left
from skillweave.base.chat import PromptOrIds
from skillweave.base.defaults import config_of, generating_as
from skillweave.base.generate import AnswerReader, context_length, encode_prompts, no_probabilities
from skillweave.base.voice import Voice, padding_id
from skillweave.engine.sampler import RowSampler, RowSampling
from skillweave.weave import Route, Weave
from skillweave.weave.request_group import cannot_answer

RowEnd = Literal["answer", "length"]
"""``answer`` if the model wrote an end token, ``length`` if the answer was cut off."""


@dataclass(frozen=True)
class Speaker:
    """What a voice means for rows of the model: its end tokens, its number of tokens, and the reader of its answers."""

    stops: frozenset[int]
    vocabulary: int
    reader: AnswerReader


@dataclass(frozen=True)
class Prepared:
    """A request whose pack is known, as tokens.

    - ``room``: the most tokens that the answer may have
    - ``group``: only requests of one group can share a batch
    """

    route: Route
    ids: list[int]
    room: int
    group: str | None
    speaker: Speaker


@dataclass(eq=False)
class Work:
    """A request on its way through the engine.

    ``prepared`` is None until the router has chosen the pack. The caller sets ``cancelled``.
    """

    prompt: PromptOrIds
    pack: str | None
    sampling: Sampling
    prepared: Prepared | None = None
    cancelled: bool = False


@dataclass(frozen=True)
class Event:
    """What happened to a request in one step: a new token, and its end or its failure. An end token is not passed."""

    work: Work
    token: int | None = None
    ended: RowEnd | None = None
    error: BaseException | None = None


Deliver = Callable[[list[Event]], None]


@dataclass
class Tally:
    """What the batches did so far; only the worker changes it. ``row_steps`` counts the rows of every step."""

    batches: int = 0
    rows: int = 0
    row_steps: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Preparer:
    """Turns requests into tokens, each with the voice of its pack."""

    def __init__(self, weave: Weave) -> None:
        self._weave = weave
        self._limit = context_length(weave.base.model)
        self._speakers: WeakKeyDictionary[Voice, Speaker] = WeakKeyDictionary()

    def prepare(self, prompt: PromptOrIds, route: Route, sampling: Sampling) -> Prepared:
        """Return the request as tokens.

        Raises :class:`UserError` for a prompt that does not fit into the context.
        """
        weave, voice = self._weave, self._weave.voice(route.pack)
        (ids,) = encode_prompts(weave.base.model, weave.base.tokenizer, [prompt], [voice])
        room = sampling.max_new_tokens if self._limit is None else min(sampling.max_new_tokens, self._limit - len(ids))
        alone = route.pack is not None and weave.packed_model.why_alone(route.pack) is not None
        return Prepared(route, ids, room, route.pack if alone else None, self._speaker(voice))

    def _speaker(self, voice: Voice) -> Speaker:
        if voice not in self._speakers:
            model = self._weave.base.model
            rows = model.get_input_embeddings().weight.shape[0] if voice.rows is None else voice.rows
            self._speakers[voice] = Speaker(frozenset(voice.stops(model)), rows, AnswerReader(voice.tokenizer))
        return self._speakers[voice]


@torch.no_grad()
def answer_batch(weave: Weave, batch: Sequence[tuple[Work, Prepared]], deliver: Deliver, tally: Tally) -> None:
    """Answer requests of one group side by side, and deliver each token as soon as it is there.

    A row ends at its own end tokens, when it has no more room, or when its request is cancelled. A row whose scores are
    NaN or infinite fails alone. If the model raises an error, the rows that have not ended get no event.
    """
    model = weave.base.model
    prompts = [ready.ids for _, ready in batch]
    ids, mask = pad_left(prompts, padding_id(model, weave.base.tokenizer), model.device)
    sampler = RowSampler([_sampling(work, ready) for work, ready in batch], model.device)
    tally.batches += 1
    tally.rows += len(batch)
    tally.prompt_tokens += sum(map(len, prompts))
    # The sampler adds the noise, and decoding is greedy. No end token is given, because each row has its own.
    config = config_of(
        {},
        pad_token_id=padding_id(model, weave.base.tokenizer),
        eos_token_id=None,
        max_new_tokens=max(ready.room for _, ready in batch),
    )
    was_training = model.training
    model.eval()
    try:
        with weave.packed_model.rows([ready.route.pack for _, ready in batch]), generating_as(model, config):
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([_Delivery(batch, sampler, deliver, tally)]),
            )
    finally:
        model.train(was_training)


def _sampling(work: Work, ready: Prepared) -> RowSampling:
    sampling = work.sampling
    return RowSampling(sampling.temperature, sampling.top_p, sampling.seed, ready.speaker.vocabulary)


class _Delivery(StoppingCriteria):
    """Delivers the newest token of each row, and says which rows have ended. Shapes: ids (B, T) -> bool (B,)."""

    def __init__(
        self, batch: Sequence[tuple[Work, Prepared]], sampler: RowSampler, deliver: Deliver, tally: Tally
    ) -> None:
        self._batch, self._sampler, self._deliver, self._tally = batch, sampler, deliver, tally
        self._left = [ready.room for _, ready in batch]
        self._ended = [False] * len(batch)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        events = []
        for row, (token, (work, ready)) in enumerate(zip(input_ids[:, -1].tolist(), self._batch, strict=True)):
            if self._ended[row]:
                continue
            if work.cancelled:
                self._end(row)
                continue
            if row in self._sampler.bad:
                error = no_probabilities(self._sampler.bad[row], row)
                failure = cannot_answer(ready.route.pack, error)
                failure.__cause__ = error
                events.append(Event(work, error=failure))
                self._end(row)
                continue
            self._tally.completion_tokens += 1
            self._left[row] -= 1
            if token in ready.speaker.stops:
                events.append(Event(work, ended="answer"))
                self._end(row)
            elif self._left[row] == 0:
                events.append(Event(work, token, ended="length"))
                self._end(row)
            else:
                events.append(Event(work, token))
        self._tally.row_steps += len(self._batch)
        if events:
            self._deliver(events)
        return torch.tensor(self._ended, device=input_ids.device)

    def _end(self, row: int) -> None:
        self._ended[row] = True
        self._sampler.drop(row)
