"""What the linear layers of the base see: second moments and largest values of their inputs.

Layers fed by the same tensor (q, k, v; gate, up) form one group and share one moment. Groups are found by watching a
forward pass, so no model's names are known here.

Two lessons of a first trial shape the weights ([ours], methods/skillweave.md): the template's tokens, the same in every
prompt, drown the ones that matter, so only tokens from which an answer's token is predicted count (a quarter of the
weight for the prompt measured worse than none); and the first token of a sequence, where attention dumps what it does
not need, has activations hundreds of times larger than any other, so it is dropped and every other token's norm is
bounded. What that gains is said at :class:`skillweave.skillzip.ZipConfig`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from skillweave.base import Answer, Prompt, answer_ids, prompt_ids
from skillweave.base.generate import check_has_rows, context_length
from skillweave.errors import UserError
from skillweave.progress import bar, console, share_of

CalibrationRow = tuple[list[int], list[float]]
"""Token ids of a prompt with its answer, and the weight of each position."""

_TOKENS_A_BATCH = 2048
_NORM_QUANTILE = 0.95
"""Token vectors longer than this quantile of their batch are shortened to it."""


@dataclass(frozen=True)
class Moments:
    """What one group's input looked like over the weighted tokens of the calibration set."""

    second: torch.Tensor
    """E[x x^T] (in, in) float32"""
    largest: torch.Tensor
    """max |x_j| (in,) float32, over the tokens that count"""


def linear_modules(model: nn.Module) -> dict[str, bool]:
    """The model's linear modules in their order: name -> whether the weight is stored as (in, out), like GPT-2's."""
    from transformers.pytorch_utils import Conv1D

    return {
        name: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


@torch.no_grad()
def input_groups(model: nn.Module) -> dict[str, list[str]]:
    """Groups of linear modules fed by one tensor: ``{"model.layers.0.self_attn:q_proj+k_proj+v_proj": [names]}``.

    Found by one forward pass over two tokens. A module that the pass never calls is a group of its own; so is every
    one of a model without values (on the ``meta`` device), through which no pass is possible.
    """
    seen: dict[int, list[str]] = {}
    alive = []  # an input freed during the pass could lend its identity to another

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
    """The parent that the modules share, and their own names: ``parent:q_proj+k_proj``."""
    split = [name.split(".") for name in members]
    depth = 0
    while all(len(parts) > depth + 1 and parts[depth] == split[0][depth] for parts in split):
        depth += 1
    return ".".join(split[0][:depth]) + ":" + "+".join(".".join(parts[depth:]) for parts in split)


def token_weights(prompt_length: int, answer_length: int) -> list[float]:
    """The weight of each position of a prompt and its answer.

    The positions that predict an answer's token (the prompt's last, and all of the answer but its last) share a weight
    of 1. The rest of the prompt, and the first position whatever it predicts, get 0.
    """
    length = prompt_length + answer_length
    answering = range(max(prompt_length - 1, 1), length - 1)
    return [1 / len(answering) if position in answering else 0.0 for position in range(length)]


def bounded(x: torch.Tensor) -> torch.Tensor:
    """The rows of x (tokens, in), those longer than the 95% quantile of lengths shortened to it."""
    norms = x.norm(dim=1, keepdim=True)
    bound = torch.quantile(norms, _NORM_QUANTILE)
    return x * (bound / norms.clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1)


def calibration_rows(
    model: Any, tokenizer: Any, examples: Sequence[tuple[Prompt, Answer]], rows: int | None = None
) -> list[CalibrationRow]:
    """The examples (prompt, answer) that can be used, as tokens; how many are left out is said, and why.

    An example is left out where it is longer than the model's context, or where no token of the answer counts (see
    :func:`token_weights`). ``rows``: how many tokens there are (None: as many as the model's embedding has rows).
    Raises :class:`UserError` where none is left, and for a token without a row.
    """
    context = context_length(model)
    held = model.get_input_embeddings().weight.shape[0] if rows is None else rows
    every = [_encode(tokenizer, prompt, answer) for prompt, answer in examples]
    for number, (ids, _) in enumerate(every, 1):
        check_has_rows(tokenizer, ids, held, f"calibration example {number}")
    fit = [row for row in every if context is None or len(row[0]) <= context]
    usable = [row for row in fit if any(row[1])]
    told = []
    if len(fit) < len(every):
        told.append(
            f"{share_of(len(every) - len(fit), len(every), 'calibration examples')} are longer than the base's context "
            f"of {context} tokens and are left out; shorten them"
        )
    if len(usable) < len(fit):
        told.append(
            f"{share_of(len(fit) - len(usable), len(every), 'calibration examples')} have a prompt of one token and no "
            "answer, and are left out"
        )
    if not usable:
        raise UserError(
            "no calibration example can be used: give (prompt, answer) pairs" + "".join(f"; {t}" for t in told)
        )
    for text in told:
        console.print(f"  {text}", soft_wrap=True)
    return usable


@torch.no_grad()
def calibrate(model: nn.Module, rows: Sequence[CalibrationRow], groups: dict[str, list[str]]) -> dict[str, Moments]:
    """:class:`Moments` of each group's input over ``rows`` (:func:`calibration_rows`), each example of equal weight.

    A group is given by modules that are fed every token of the batch, row by row (:mod:`skillweave.base.feeding`).

    Products are summed in float32 on the model's device: 4 * in^2 bytes a group, which the caller bounds by asking for
    some of the groups at a time.
    """
    sums: dict[str, torch.Tensor] = {}
    largest: dict[str, torch.Tensor] = {}
    weights = torch.empty(0)

    def watch(group: str) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            counted = weights.flatten() > 0
            x = args[0].reshape(-1, args[0].shape[-1])  # some layers are fed rows and tokens flattened into one axis
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
        for batch in _batches(rows):
            ids, mask, weights = (tensor.to(next(model.parameters()).device) for tensor in _pad(batch))
            model(input_ids=ids, attention_mask=mask, use_cache=False)
            advance(len(batch))
    return {group: Moments((sums[group] / len(rows)).cpu(), largest[group].cpu()) for group in sums}


def _encode(tokenizer: Any, prompt: Prompt, answer: Answer) -> CalibrationRow:
    before, after = prompt_ids(tokenizer, prompt), answer_ids(tokenizer, answer, prompt)
    return before + after, token_weights(len(before), len(after))


def _batches(rows: Sequence[CalibrationRow]) -> Iterator[list[CalibrationRow]]:
    rows = sorted(rows, key=lambda row: len(row[0]))
    batch: list[CalibrationRow] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row[0]) > _TOKENS_A_BATCH:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _pad(rows: Sequence[CalibrationRow]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and weights, each (B, T), padded on the right; padding has weight 0."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows])
    weights = torch.tensor([row + [0.0] * (width - len(row)) for _, row in rows])
    return ids, mask, weights


@contextmanager
def _hooked(model: nn.Module, hooks: dict[str, Any]) -> Iterator[None]:
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
