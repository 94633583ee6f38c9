"""Generate answers from any causal LM, in batches of similar length that are padded on the left.

A packed model is an ordinary causal LM here. Its caller chooses the pack of each row through ``around_batch``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteriaList

from skillweave.base.batching import batch_rows, pad_left
from skillweave.base.chat import Prompt, PromptOrIds, prompt_ids, text_of
from skillweave.base.defaults import config_of, generating_as
from skillweave.base.ends import control_tokens, up_to_end
from skillweave.base.prefix import read_prefix
from skillweave.base.sizes import context_length
from skillweave.base.thoughts import MARK_TOKENS, opened_thought, template_thought_markers
from skillweave.base.voice import OwnEnds, Voice, padding_id
from skillweave.errors import UserError
from skillweave.progress import bar


@dataclass(frozen=True)
class Sampling:
    """How to decode.

    Of the model's ``generation_config.json``, only the end tokens are used, unless ``model_defaults`` is set.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    """0 is greedy"""
    top_p: float = 1.0
    samples: int = 1
    """answers for each prompt"""
    batch_size: int = 32
    seed: int = 0
    model_defaults: bool = False
    """choose tokens as the model's ``generation_config.json`` says, in place of ``temperature`` and ``top_p``
    (:func:`~skillweave.base.defaults.model_defaults`)"""


class NoProbabilities(UserError):
    """The model gives NaN or infinity for row ``row`` of a batch, so no token can be drawn."""

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class Generated:
    """One answer of the model."""

    text: str
    ended: bool
    """whether the model wrote an end token; if not, the answer was cut off at ``max_new_tokens``"""


def encode_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[PromptOrIds],
    voices: Sequence[Voice] | None = None,
    *,
    numbers: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the token ids of each prompt.

    ``tokenizer`` makes them, or the voice of each prompt if ``voices`` is given. ``numbers`` are the numbers of the
    prompts for errors, from 0 (default: 0, 1, 2, ...). Raises the errors of :func:`check_prompt`.
    """
    voices = voices or [Voice(tokenizer)] * len(prompts)
    numbers = range(len(prompts)) if numbers is None else numbers
    encoded = [prompt_ids(voice.tokenizer, prompt) for voice, prompt in zip(voices, prompts, strict=True)]
    for number, ids, voice, prompt in zip(numbers, encoded, voices, prompts, strict=True):
        check_prompt(model, voice, ids, number, beginning=str(prompt)[:60])
    return encoded


def check_prompt(
    model: Any, voice: Voice, ids: Sequence[int], number: int, *, beginning: str = "", with_tools: bool = False
) -> None:
    """Raise :class:`UserError` for a prompt that is empty, leaves no room for an answer, or has a token without a row.

    The message names the prompt by ``number`` (from 0) and ``beginning``, and also the pack whose chat template wrote
    it. ``with_tools``: the ids include a description of tools.
    """
    what = f"prompt {number + 1}"
    rows = voice.vocabulary(model)
    check_has_rows(voice.tokenizer, ids, rows, what)
    if not ids:
        raise UserError(f"{what} is empty: write at least one word")
    limit = context_length(model)
    if limit is None or len(ids) < limit:
        return
    size = f"{what} has {len(ids)} tokens" + (" with the description of the tools" if with_tools else "")
    if owner := getattr(voice.tokenizer, "travels_with", None):
        size += f", written by the {'chat template' if voice.tokenizer.chat_template else 'tokenizer'} of {owner}"
    fix = "Shorten it, or give fewer tools." if with_tools else "Shorten it."
    begins = f" It begins: {beginning!r}" if beginning else ""
    raise UserError(f"{size}; the model's context is {limit}, answer included. {fix}{begins}")


def check_has_rows(tokenizer: Any, ids: Sequence[int], rows: int, what: str) -> None:
    """Raise :class:`UserError` if one of the ids is not below ``rows``; ``what`` names the text in the message."""
    strange = next((id_ for id_ in ids if id_ >= rows), None)
    if strange is not None:
        token = tokenizer.convert_ids_to_tokens(strange)
        named = f"the token with the id {strange}" if token is None else f"the token {token!r} (id {strange})"
        raise UserError(
            f"{what} holds {named}, and the model has "
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
    """Return the texts of :func:`generate_answers`, which takes the same arguments."""
    answers = generate_answers(
        model, tokenizer, prompts, sampling, around_batch=around_batch, streamer=streamer, label=label
    )
    return [[answer.text for answer in drawn] for drawn in answers]


@torch.no_grad()
def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[PromptOrIds],
    sampling: Sampling | None = None,
    *,
    voices: Sequence[Voice] | None = None,
    numbers: Sequence[int] | None = None,
    around_batch: Callable[[list[int]], AbstractContextManager[Any]] | None = None,
    apart: Callable[[int], Hashable] | None = None,
    prefixes: Sequence[int] | None = None,
    kept: Collection[int] = (),
    written: Callable[[Mapping[int, list[Generated]]], object] | None = None,
    streamer: Any = None,
    label: str | None = None,
) -> list[list[Generated]]:
    """Return ``samples`` answers for every prompt, in the order of the prompts.

    * ``voices`` gives each prompt its own tokenizer, end tokens and sampling defaults, in place of ``tokenizer`` and
      those of the model. Prompts of one batch may have different voices, except for the defaults.
    * ``around_batch(rows)`` is a context that is entered for each batch; ``rows`` has the index of the prompt of each
      row.
    * Prompts with different values of ``apart(index)`` are never in one batch.
    * ``prefixes`` gives for each prompt how many of its first tokens are read outside of ``around_batch``. Prompts that
      have the same number of tokens behind their prefix share batches.
    * ``kept`` are the indices of prompts that need no answer. A batch of nothing else is left out, and its prompts get
      an empty list. All other batches and their draws are the same as without ``kept``.
    * ``written`` is called after each batch with its answers, by the index of the prompt.
    * ``streamer`` is a transformers streamer, for one prompt and one sample.
    * ``label`` shows a progress bar.

    Raises :class:`NoProbabilities`, whose ``row`` is the index of the prompt, if the model gives NaN or infinity, and
    :class:`UserError` as :func:`encode_prompts` does.
    """
    sampling = sampling or Sampling()
    voices = voices or [Voice(tokenizer)] * len(prompts)
    numbers = range(len(prompts)) if numbers is None else numbers
    encoded = encode_prompts(model, tokenizer, prompts, voices, numbers=numbers)
    rows = [index for index in range(len(prompts)) for _ in range(sampling.samples)]
    limit = context_length(model)
    room = [sampling.max_new_tokens if limit is None else min(sampling.max_new_tokens, limit - len(i)) for i in encoded]
    decodings = _decodings(model, voices, sampling)

    behind = [len(ids) - start for ids, start in zip(encoded, prefixes or [0] * len(encoded), strict=True)]

    def kind(row: int) -> Hashable:
        return decodings[row].group, apart(row) if apart else None, behind[row] if prefixes else None

    batches = batch_rows(rows, [len(ids) for ids in encoded], room, sampling.batch_size, kind)
    answers: list[list[Generated]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        with bar(label or "", len(rows), shown=label is not None) as advance:
            for number, batch in enumerate(batches):
                if all(row in kept for row in batch):
                    advance(len(batch))
                    continue
                ids, mask = pad_left([encoded[row] for row in batch], padding_id(model, tokenizer), model.device)
                read = ids.shape[1] - behind[batch[0]] if prefixes else 0
                cache = read_prefix(model, ids[:, :read], mask[:, :read]) if read else None
                try:
                    with around_batch(batch) if around_batch else contextlib.nullcontext():
                        texts = _one_batch(
                            model,
                            [decodings[row] for row in batch],
                            [encoded[row] for row in batch],
                            ids,
                            mask,
                            cache,
                            pad=padding_id(model, tokenizer),
                            max_new_tokens=room[batch[0]],
                            seed=sampling.seed + number,
                            streamer=streamer,
                        )
                except NoProbabilities as error:
                    row = batch[error.row]
                    raise NoProbabilities(f"prompt {numbers[row] + 1}: {error}", row) from None
                for row, answer in zip(batch, texts, strict=True):
                    answers[row].append(answer)
                if written is not None:
                    written({row: answers[row] for row in batch})
                advance(len(batch))
    finally:
        model.train(was_training)
    return answers


@dataclass(frozen=True)
class _Decoding:
    """How the answer to one prompt is decoded."""

    tokenizer: Any
    stops: list[int]
    """the ids that end the answer"""
    choice: dict[str, Any]
    """how tokens are chosen: settings of transformers' ``GenerationConfig``"""
    group: str
    """only prompts of one group may share a batch"""


def _decodings(model: Any, voices: Sequence[Voice], sampling: Sampling) -> list[_Decoding]:
    plain = {"temperature": sampling.temperature, "top_p": sampling.top_p} if sampling.temperature else {}
    by_voice: dict[int, _Decoding] = {}
    for voice in voices:
        if id(voice) not in by_voice:
            choice = voice.defaults(model) if sampling.model_defaults else plain
            stops = voice.stops(model)
            # A model's defaults may contain a rule about end tokens, which transformers applies to a whole batch.
            group = repr((choice, stops)) if sampling.model_defaults else ""
            by_voice[id(voice)] = _Decoding(voice.tokenizer, stops, choice, group)
    return [by_voice[id(voice)] for voice in voices]


def _one_batch(
    model: Any,
    decodings: list[_Decoding],
    encoded: list[list[int]],
    ids: torch.Tensor,
    mask: torch.Tensor,
    cache: Any,
    *,
    pad: int,
    max_new_tokens: int,
    seed: int,
    streamer: Any,
) -> list[Generated]:
    """Return the answers of one batch, in the order of its rows.

    ``ids`` and ``mask`` are the padded prompts, and ``cache`` has the keys and values of those that are read already.
    """
    choice, stops = decodings[0].choice, decodings[0].stops
    mixed = any(decoding.stops != stops for decoding in decodings)
    own_ends = [OwnEnds([decoding.stops for decoding in decodings], model.device)] if mixed else []
    # By default, transformers samples from the 50 likeliest tokens only.
    config = config_of(
        {"top_k": 0, **choice} if choice.get("temperature") else choice,
        pad_token_id=pad,
        eos_token_id=None if mixed else stops,
        max_new_tokens=max_new_tokens,
    )
    # torch's random generator is global. The fork keeps sampling from changing the random numbers of a training run.
    with (
        torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []),
        generating_as(model, config),
    ):
        torch.manual_seed(seed)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **({} if cache is None else {"past_key_values": cache}),
            generation_config=config,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList(own_ends),
            logits_processor=[lambda _, scores: check_scores(scores)],
        )
    tokenizers = {id(decoding.tokenizer): decoding.tokenizer for decoding in decodings}
    readers = {key: AnswerReader(tokenizer) for key, tokenizer in tokenizers.items()}
    answers = []
    for decoding, prompt, row in zip(decodings, encoded, out[:, ids.shape[1] :].tolist(), strict=True):
        # Cut at the end token: decoding to text may not skip it, and padding may be any token.
        written, ended = up_to_end(row, decoding.stops)
        answers.append(Generated(readers[id(decoding.tokenizer)].text(prompt, written, ended), ended))
    return answers


def check_scores(scores: torch.Tensor) -> torch.Tensor:
    """Return the scores (B, V) of the next token unchanged, after a check.

    Raises :class:`NoProbabilities` with the first row that has NaN or infinity. Minus infinity is allowed: it rules a
    token out.
    """
    top = scores.amax(dim=-1)  # NaN if one of the scores is
    if not bool(top.isfinite().all()):
        row = int((~top.isfinite()).nonzero()[0])
        raise no_probabilities(float(top[row]), row)
    return scores


def no_probabilities(value: float, row: int) -> NoProbabilities:
    """Return the error for a row whose scores hold ``value``, which is NaN or infinity."""
    return NoProbabilities(f"the model gives {value} in place of probabilities: its weights diverged", row)


class AnswerReader:
    """Reads the tokens of answers as text, in which thoughts can be recognised by their markers.

    If a marker contains a special token, special tokens stay in the text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._markers = template_thought_markers(tokenizer)
        control = control_tokens(tokenizer)
        self._special = any(control.search(marker) for pair in self._markers for marker in pair)

    def read(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without the end token."""
        return text_of(self._tokenizer, ids, special=self._special)

    def text(self, prompt: Sequence[int], written: Sequence[int], ended: bool) -> str:
        """Return the text of a whole answer to the token ids ``prompt``; ``ended``: an end token came after it.

        If the prompt opened a thought, and the answer was cut off inside it, the answer contains no marker: the
        prompt's opening marker is put before it.
        """
        text = self.read(written)
        if ended:
            return text
        before = text_of(self._tokenizer, prompt[-MARK_TOKENS:], special=True)
        opening = opened_thought(before, self._markers)
        return f"{opening}\n{text}" if opening and dict(self._markers)[opening] not in text else text
