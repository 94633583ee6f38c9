"""Answers from a model: batched, padded left, sorted by length, the same call for any causal LM.

The woven model is an ordinary causal LM to this function; which pack each row uses is told to it through
``around_batch``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteriaList

from skillweave.base.batching import batch_rows, pad_left
from skillweave.base.chat import Prompt, prompt_ids, text_of
from skillweave.base.defaults import config_of, generating_as
from skillweave.base.ends import control_tokens, up_to_end
from skillweave.base.thoughts import MARK_TOKENS, Markers, opened_thought, template_thought_markers
from skillweave.base.voice import OwnEnds, Voice, padding_id
from skillweave.errors import UserError
from skillweave.progress import bar


@dataclass(frozen=True)
class Sampling:
    """How to decode. ``temperature=0`` is greedy; ``samples`` answers are drawn for each prompt.

    Of the model's ``generation_config.json`` only the end tokens count. With ``model_defaults`` its choice of tokens
    does too, in place of ``temperature`` and ``top_p`` (:func:`~skillweave.base.defaults.model_defaults`).
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    batch_size: int = 32
    seed: int = 0
    model_defaults: bool = False


class NoProbabilities(UserError):
    """The model gives NaN or infinity for a row, ``row``, of a batch: no token can be drawn from that."""

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class Generated:
    """One answer. ``ended``: the model wrote its end token; else the answer was cut off at ``max_new_tokens``."""

    text: str
    ended: bool


def context_length(model: Any) -> int | None:
    """The longest sequence the model was made for, in tokens, or None where its config names none."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def encode_prompts(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], voices: Sequence[Voice] | None = None
) -> list[list[int]]:
    """Token ids of each prompt, written by ``tokenizer`` or by the voice of each.

    A prompt that leaves no room for an answer, or holds a token that the model has no row for, is a :class:`UserError`
    naming it.
    """
    limit, held = context_length(model), model.get_input_embeddings().weight.shape[0]
    voices = voices or [Voice(tokenizer)] * len(prompts)
    encoded = [prompt_ids(voice.tokenizer, prompt) for voice, prompt in zip(voices, prompts, strict=True)]
    for index, (ids, voice) in enumerate(zip(encoded, voices, strict=True)):
        check_has_rows(voice.tokenizer, ids, held if voice.rows is None else voice.rows, f"prompt {index + 1}")
        if not ids:
            raise UserError(f"prompt {index + 1} is empty: write at least one word")
        if limit is not None and len(ids) >= limit:
            raise UserError(
                f"prompt {index + 1} has {len(ids)} tokens; the model's context is {limit}, answer included. "
                f"Shorten it. It begins: {str(prompts[index])[:60]!r}"
            )
    return encoded


def check_has_rows(tokenizer: Any, ids: Sequence[int], rows: int, what: str) -> None:
    """Raise :class:`UserError` where ``what`` holds a token behind the model's rows."""
    strange = next((id_ for id_ in ids if id_ >= rows), None)
    if strange is not None:
        raise UserError(
            f"{what} holds the token {tokenizer.convert_ids_to_tokens(strange)!r} (id {strange}), and the model has "
            f"rows for {rows} tokens only: leave that token out, or give the model a row for it "
            f"(resize_token_embeddings)"
        )


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling | None = None,
    *,
    around_batch: Callable[[list[int]], AbstractContextManager[Any]] | None = None,
    streamer: Any = None,
    label: str | None = None,
) -> list[list[str]]:
    """The texts of :func:`generate_answers`, which takes the same arguments."""
    answers = generate_answers(
        model, tokenizer, prompts, sampling, around_batch=around_batch, streamer=streamer, label=label
    )
    return [[answer.text for answer in drawn] for drawn in answers]


@torch.no_grad()
def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling | None = None,
    *,
    voices: Sequence[Voice] | None = None,
    around_batch: Callable[[list[int]], AbstractContextManager[Any]] | None = None,
    apart: Callable[[int], Hashable] | None = None,
    streamer: Any = None,
    label: str | None = None,
) -> list[list[Generated]]:
    """``samples`` answers for every prompt, in the order of the prompts.

    ``voices`` gives each prompt a tokenizer, end tokens and sampling defaults of its own, in place of ``tokenizer`` and
    the model's; the prompts of one batch may have different ones, but for the defaults.
    ``around_batch(rows)`` is entered around each batch with the index of the prompt behind every row of it. Prompts for
    which ``apart(index)`` differs are never in one batch.
    ``streamer`` is a transformers streamer (one prompt, one sample). ``label`` shows a progress bar.
    Raises :class:`NoProbabilities` (``row`` is the prompt's index) where the model gives numbers that are none.
    """
    sampling = sampling or Sampling()
    voices = voices or [Voice(tokenizer)] * len(prompts)
    encoded = encode_prompts(model, tokenizer, prompts, voices)
    rows = [index for index in range(len(prompts)) for _ in range(sampling.samples)]
    limit = context_length(model)
    room = [sampling.max_new_tokens if limit is None else min(sampling.max_new_tokens, limit - len(i)) for i in encoded]
    manners = _manners(model, voices, sampling)

    def kind(row: int) -> Hashable:
        return manners[row].group, apart(row) if apart else None

    batches = batch_rows(rows, [len(ids) for ids in encoded], room, sampling.batch_size, kind)
    answers: list[list[Generated]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        with bar(label or "", len(rows), shown=label is not None) as advance:
            for number, batch in enumerate(batches):
                try:
                    with around_batch(batch) if around_batch else contextlib.nullcontext():
                        written = _one_batch(
                            model,
                            [manners[row] for row in batch],
                            [encoded[row] for row in batch],
                            pad=padding_id(model, tokenizer),
                            max_new_tokens=room[batch[0]],
                            seed=sampling.seed + number,
                            streamer=streamer,
                        )
                except NoProbabilities as error:
                    raise NoProbabilities(f"prompt {batch[error.row] + 1}: {error}", batch[error.row]) from None
                for row, answer in zip(batch, written, strict=True):
                    answers[row].append(answer)
                advance(len(batch))
    finally:
        model.train(was_training)
    return answers


@dataclass(frozen=True)
class _Manner:
    """How one prompt is answered: by which tokenizer, up to which ends, and how tokens are chosen, in the words of
    transformers."""

    tokenizer: Any
    stops: list[int]
    choice: dict[str, Any]
    group: str
    """Prompts of one group may share a batch."""


def _manners(model: Any, voices: Sequence[Voice], sampling: Sampling) -> list[_Manner]:
    plain = {"temperature": sampling.temperature, "top_p": sampling.top_p} if sampling.temperature else {}
    known: dict[int, _Manner] = {}
    for voice in voices:
        if id(voice) not in known:
            choice = voice.defaults(model) if sampling.model_defaults else plain
            stops = voice.stops(model)
            # A model's defaults may hold a rule about end tokens, which is one for the whole batch.
            group = repr((choice, stops)) if sampling.model_defaults else ""
            known[id(voice)] = _Manner(voice.tokenizer, stops, choice, group)
    return [known[id(voice)] for voice in voices]


def _one_batch(
    model: Any, manners: list[_Manner], encoded: list[list[int]], *, pad: int, max_new_tokens: int, seed: int,
    streamer: Any,
) -> list[Generated]:  # fmt: skip
    ids, mask = pad_left(encoded, pad, model.device)
    choice, stops = manners[0].choice, manners[0].stops
    mixed = any(manner.stops != stops for manner in manners)
    own = [OwnEnds([manner.stops for manner in manners], model.device)] if mixed else []
    # transformers takes the 50 likeliest tokens alone where nothing else is said.
    config = config_of({"top_k": 0, **choice} if choice.get("temperature") else choice, pad_token_id=pad,
                       eos_token_id=None if mixed else stops, max_new_tokens=max_new_tokens)  # fmt: skip
    # The generator of torch is global; a fork keeps sampling from disturbing whoever trains around us.
    with (
        torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []),
        generating_as(model, config),
    ):
        torch.manual_seed(seed)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList(own),
            logits_processor=[lambda _, scores: check_scores(scores)],
        )
    marks = {id(one): _marks(one) for one in {id(manner.tokenizer): manner.tokenizer for manner in manners}.values()}
    answers = []
    for manner, asked, row in zip(manners, encoded, out[:, ids.shape[1] :].tolist(), strict=True):
        # Up to its end alone: an end token need not be one that decoding skips, and padding may be any token.
        written, ended = up_to_end(row, manner.stops)
        markers, special = marks[id(manner.tokenizer)]
        answers.append(Generated(_text(manner.tokenizer, asked, written, ended, markers, special=special), ended))
    return answers


def _marks(tokenizer: Any) -> tuple[Markers, bool]:
    """The marks of thoughts that the template knows, and whether one of them holds a special token."""
    markers = template_thought_markers(tokenizer)
    control = control_tokens(tokenizer)
    return markers, any(control.search(mark) for pair in markers for mark in pair)


def check_scores(scores: torch.Tensor) -> torch.Tensor:
    """The scores (B, V) of the next token, where all are numbers; minus infinity (a token that is ruled out) is one.

    Raises :class:`NoProbabilities` with the first row that has NaN or infinity.
    """
    top = scores.amax(dim=-1)  # NaN where one of them is
    if not bool(top.isfinite().all()):
        row = int((~top.isfinite()).nonzero()[0])
        raise NoProbabilities(f"the model gives {float(top[row])} in place of probabilities: its weights diverged", row)
    return scores


def _text(
    tokenizer: Any, asked: Sequence[int], written: Sequence[int], ended: bool, markers: Markers, *, special: bool
) -> str:
    """What was written, so that a thought in it can be told from the answer.

    ``special``: special tokens stay in the text, for they mark thoughts. A thought that the prompt has opened, and
    that was cut off, has no mark of its own: it gets the one of the prompt.
    """
    text = text_of(tokenizer, written, special=special)
    opening = "" if ended else opened_thought(text_of(tokenizer, asked[-MARK_TOKENS:], special=True), markers)
    return f"{opening}\n{text}" if opening and dict(markers)[opening] not in text else text
