"""Calibrate: measure second moments and largest values of the inputs of the base's linear layers.

Layers with the same input tensor (q, k, v; gate, up) form one group and share one moment. Groups are detected in a
forward pass, so this file knows no model's layer names.

Two results of a first trial determine the weights of tokens ([ours], see docs/explanation/skillzip.md):

* The chat template's tokens are the same in every prompt and drown the ones that matter. So only positions that predict
  a token of the answer count. Giving a quarter of the weight to the prompt measured worse than no weighting.
* The first token of a sequence is an attention sink: its activations are hundreds of times larger than all others. So
  it is dropped, and the norms of all other tokens are bounded.

:class:`skillweave.skillzip.ZipConfig` says what the weighting gains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from skillweave.base import Answer, Prompt, answer_ids, prompt_ids
from skillweave.base.batching import pad_right, within_tokens
from skillweave.base.generate import check_has_rows
from skillweave.base.sizes import context_length, embedding_rows
from skillweave.errors import UserError
from skillweave.progress import bar, console, share_of

CalibrationRow = tuple[list[int], list[float]]
"""The token ids of a prompt with its answer, and the weight of each position."""

_TOKENS_A_BATCH = 2048
_NORM_QUANTILE = 0.95
"""Token vectors longer than this quantile of their batch are shortened to it."""


@dataclass(frozen=True)
class Moments:
    """Statistics of one group's input over the weighted tokens of the calibration set."""

    second: torch.Tensor
    """E[x x^T] (in, in) float32"""
    largest: torch.Tensor
    """max |x_j| (in,) float32, over the tokens with a weight above 0"""


def linear_modules(model: nn.Module) -> dict[str, bool]:
    """Return the model's linear modules in order: name -> whether the weight is stored as (in, out), as in GPT-2."""
    return {
        name: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


@torch.no_grad()
def input_groups(model: nn.Module) -> dict[str, list[str]]:
    """Return the groups of linear modules that share an input tensor, each under its :func:`group_name`.

    For example ``{"model.layers.0.self_attn:q_proj+k_proj+v_proj": [the three names]}``. The groups are detected in one
    forward pass over two tokens. A module that the pass does not call is a group of its own. In a model without values
    (on the ``meta`` device), which cannot run, every module is.
    """
    seen: dict[int, list[str]] = {}
    alive = []  # keeps every input: one that was freed during the pass could pass its id on to another tensor

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if not args:
                return
            alive.append(args[0])
            members = seen.setdefault(id(args[0]), [])
            if name not in members:
                members.append(name)

        return hook

    names = list(linear_modules(model))
    device = next(model.parameters()).device
    if device.type != "meta":
        with _hooked(model, {name: watch(name) for name in names}):
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)
    called = {name for members in seen.values() for name in members}
    groups = [*seen.values(), *([name] for name in names if name not in called)]
    return {group_name(members): members for members in sorted(groups, key=lambda members: names.index(members[0]))}


def group_name(members: Sequence[str]) -> str:
    """Return the name of a group, ``parent:q_proj+k_proj``: the parent that the modules share, and their own names."""
    split = [name.split(".") for name in members]
    depth = 0
    while all(len(parts) > depth + 1 and parts[depth] == split[0][depth] for parts in split):
        depth += 1
    return ".".join(split[0][:depth]) + ":" + "+".join(".".join(parts[depth:]) for parts in split)


def token_weights(prompt_length: int, answer_length: int) -> list[float]:
    """Return the weight of each position of a prompt and its answer.

    The positions that predict a token of the answer (the prompt's last, and all of the answer except its last) share a
    weight of 1. The rest of the prompt gets 0, and so does the first position, even if it predicts an answer's token.
    """
    length = prompt_length + answer_length
    answering = range(max(prompt_length - 1, 1), length - 1)
    return [1 / len(answering) if position in answering else 0.0 for position in range(length)]


def bounded(x: torch.Tensor) -> torch.Tensor:
    """Return the rows of x (tokens, in) with their norms clipped to the 95% quantile of the norms."""
    norms = x.norm(dim=1, keepdim=True)
    bound = torch.quantile(norms, _NORM_QUANTILE)
    return x * (bound / norms.clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1)


def calibration_rows(
    model: Any, tokenizer: Any, examples: Sequence[tuple[Prompt, Answer]], rows: int | None = None
) -> list[CalibrationRow]:
    """Return the usable examples (prompt, answer) as tokens, and print how many are left out, and why.

    An example is left out if it is longer than the model's context, or if no position has a weight
    (:func:`token_weights`). ``rows`` is the size of the vocabulary; None means the rows of the model's embedding.
    Raises :class:`UserError` if no example is left, and for a token without a row.
    """
    context = context_length(model)
    vocabulary = embedding_rows(model) if rows is None else rows
    every = [_encode(tokenizer, prompt, answer) for prompt, answer in examples]
    for number, (ids, _) in enumerate(every, 1):
        check_has_rows(tokenizer, ids, vocabulary, f"calibration example {number}")
    fit = [row for row in every if context is None or len(row[0]) <= context]
    usable = [row for row in fit if any(row[1])]
    notes = []
    if len(fit) < len(every):
        notes.append(
            f"{share_of(len(every) - len(fit), len(every), 'calibration examples')} are longer than the base's context "
            f"of {context} tokens and are left out; shorten them"
        )
    if len(usable) < len(fit):
        notes.append(
            f"{share_of(len(fit) - len(usable), len(every), 'calibration examples')} have a prompt of one token and no "
            "answer, and are left out"
        )
    if not usable:
        raise UserError(
            "no calibration example can be used: give (prompt, answer) pairs" + "".join(f"; {note}" for note in notes)
        )
    for note in notes:
        console.print(f"  {note}", soft_wrap=True)
    return usable


@torch.no_grad()
def calibrate(model: nn.Module, rows: Sequence[CalibrationRow], groups: dict[str, list[str]]) -> dict[str, Moments]:
    """Return the :class:`Moments` of each group's input over ``rows``; every example has the same weight.

    * ``rows`` come from :func:`calibration_rows`.
    * ``groups`` gives the modules of each group. Their input must hold every token of the batch, row by row
      (:mod:`skillweave.base.feeding`).
    * Products are summed in float32 on the model's device, which takes 4 * in^2 bytes for each group. The caller limits
      this by passing some of the groups at a time.
    """
    sums: dict[str, torch.Tensor] = {}
    largest: dict[str, torch.Tensor] = {}
    weights = torch.empty(0)
    device = next(model.parameters()).device

    def watch(group: str) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            counted = weights.flatten() > 0
            x = args[0].reshape(-1, args[0].shape[-1])  # in some layers rows and tokens are one axis
            if x.shape[0] != counted.numel():
                return
            x = bounded(x[counted].float())
            scaled = x * weights.flatten()[counted, None].sqrt()
            sums[group] = sums[group].addmm_(scaled.T, scaled) if group in sums else scaled.T @ scaled
            top = x.abs().amax(dim=0)
            largest[group] = torch.maximum(largest[group], top) if group in largest else top

        return hook

    hooks = {members[0]: watch(group) for group, members in groups.items()}
    with _hooked(model, hooks), bar("calibrating", len(rows)) as advance:
        for indices in within_tokens([len(ids) for ids, _ in rows], _TOKENS_A_BATCH):
            batch = [rows[index] for index in indices]
            ids, mask = pad_right([ids for ids, _ in batch], 0, device)
            weights, _ = pad_right([weights for _, weights in batch], 0.0, device)
            model(input_ids=ids, attention_mask=mask, use_cache=False)
            advance(len(batch))
    return {group: Moments((sums[group] / len(rows)).cpu(), largest[group].cpu()) for group in sums}


def _encode(tokenizer: Any, prompt: Prompt, answer: Answer) -> CalibrationRow:
    before, after = prompt_ids(tokenizer, prompt), answer_ids(tokenizer, answer, prompt)
    return before + after, token_weights(len(before), len(after))


@contextmanager
def _hooked(model: nn.Module, hooks: dict[str, Any]) -> Iterator[None]:
    """Inside this context the model is in eval mode, and each hook runs before the module of its name."""
    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_pre_hook(hook) for name, hook in hooks.items()]
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
