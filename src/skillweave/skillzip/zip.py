"""A delta becomes a skillpack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from skillweave.base import Base, Prompt
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.pack import BaseRef, Codec, DifferenceEntry, Entry, PackBytes, PackCard, Skillpack, WholeEntry
from skillweave.skillzip.calibrate import Moments, calibrate, input_groups, linear_names
from skillweave.skillzip.codecs import get_codec
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.job import Job, Written, measures

_LATER = 0.001
"""The share of the budget kept free for what is written on the card after the zip: scores and the audit."""


def zip_delta(
    delta: Delta,
    base: Base,
    calibration: Sequence[tuple[Prompt, str]] | None,
    config: ZipConfig,
    *,
    name: str,
    method: str = "unknown",
    data: dict[str, Any] | None = None,
) -> Skillpack:
    """The pack of ``delta`` within the config's bytes, all three files counted.

    ``calibration`` holds (prompt, answer) pairs; it may be None where the config asks for neither activation weighting
    nor smoothing. The weights of linear layers are written low-rank. Tensors that have no counterpart in the base are
    stored whole, in bf16. The rest (norms, biases, embeddings) follows ``config.other``: "drop" leaves them at the
    base's values; "keep" stores those with one axis as bf16 differences and drops the others. What is dropped is named
    in ``card.left_out``, with ||delta|| / ||base|| of each in ``card.codec.measured["left_out"]``.

    Raises :class:`UserError` for a delta of another base, a tensor with NaN, a codec of unknown name, missing
    calibration, and a budget too small (naming the least that would do).
    """
    codec = get_codec(config.codec)
    if delta.base_fingerprint != base.fingerprint:
        raise UserError(
            f"the delta belongs on the base {delta.base_fingerprint[:19]}..., not on {base.ref} "
            f"({base.fingerprint[:19]}...). Open the base it was taken from."
        )
    if config.needs_calibration and not calibration:
        raise UserError(
            "activation_aware and smoothing need calibration pairs (prompt, answer): give some, or set "
            "activation_aware=false and smoothing=null"
        )
    weights = base.model.state_dict()
    linear = _linear_weights(base.model)
    matrices = [key for key in delta.names() if key in linear and not delta.whole(key)]
    card = PackCard(
        name=name,
        base=BaseRef(ref=base.ref, fingerprint=base.fingerprint),
        method=method,
        data=data or {},
        codec=Codec(name=config.codec, settings=config.model_dump(mode="json", exclude={"codec"}, exclude_none=True)),
    )
    others = {key: delta.tensor(key) for key in delta.names() if key not in set(matrices)}
    tensors = _place_others(card, others, delta, weights, config)
    shapes = {key: (weights[key].shape[0], weights[key].shape[1]) for key in weights if key in set(matrices)}
    card.bytes.bf16_matrices = 2 * sum(out * in_ for out, in_ in shapes.values())
    card.bytes.bf16_delta = card.bytes.bf16_matrices + 2 * sum(tensor.numel() for tensor in others.values())
    if not shapes and not card.entries:
        raise UserError("the delta changes no tensor that a pack can hold: there is nothing to zip")
    limit = config.budget if config.budget is not None else int((config.ratio or 0) * card.bytes.bf16_delta)
    groups = _groups_of(base.model, shapes)

    def moments(wanted: list[str]) -> dict[str, Moments]:
        modules = {group: [key.removesuffix(".weight") for key in groups[group]] for group in wanted}
        return calibrate(base.model, base.tokenizer, calibration or [], modules)

    job = Job(
        config=config,
        shapes=shapes,
        groups=groups,
        read=lambda key: _finite(key, delta.tensor(key).float()),
        factors=lambda key: _factors(delta, key),
        moments=moments,
        card=card,
        budget=limit - int(_LATER * limit) - 64,
        tensors=tensors,
    )
    if not shapes and job.free_bytes({}) < 0:
        raise job.refuse({})
    written = codec(job) if shapes else Written({}, {})
    pack = job.finished(written, {})
    ranks = [entry.rank for entry in written.entries.values()]
    pack.card.codec.measured |= measures(_weight_error(pack, job), ranks)
    pack.card.bytes = pack.weighed()
    return pack


def _place_others(
    card: PackCard,
    others: dict[str, torch.Tensor],
    delta: Delta,
    weights: dict[str, torch.Tensor],
    config: ZipConfig,
) -> dict[str, torch.Tensor]:
    """Tensors of the changes that are no linear layer's weight; their entries and what is left out go on the card."""
    tensors: dict[str, torch.Tensor] = {}
    entries: dict[str, Entry] = {}
    left_out: dict[str, float | None] = {}
    for key, tensor in others.items():
        _finite(key, tensor)
        if delta.whole(key):
            entries[key] = WholeEntry(shape=tuple(tensor.shape))
            tensors[key] = tensor.bfloat16() if tensor.is_floating_point() else tensor
        elif config.other == "keep" and tensor.dim() == 1:
            entries[key] = DifferenceEntry(shape=tuple(tensor.shape))
            tensors[key] = tensor.bfloat16()
        else:
            norm = float(weights[key].float().norm())
            left_out[key] = float(f"{float(tensor.float().norm()) / norm:.2g}") if norm else None
    card.entries, card.left_out = entries, list(left_out)
    if left_out:
        card.codec.measured = {"left_out": left_out}
    return tensors


def _linear_weights(model: nn.Module) -> set[str]:
    """Names of the weights of linear layers, without a head that shares its weight with the embedding."""
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {f"{name}.weight" for name in linear_names(model) if id(model.get_submodule(name).weight) not in embedded}


def _groups_of(model: nn.Module, shapes: dict[str, tuple[int, int]]) -> dict[str, list[str]]:
    """The groups of :func:`input_groups`, changed weights only, under the names of the whole groups."""
    groups = {group: [f"{name}.weight" for name in members] for group, members in input_groups(model).items()}
    changed = {group: [key for key in members if key in shapes] for group, members in groups.items()}
    return {group: members for group, members in changed.items() if members}


def _finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise UserError(f"the delta of '{name}' holds NaN or infinity: the training run diverged; zip an earlier one")
    return tensor


def _weight_error(pack: Skillpack, job: Job) -> float:
    """||R - D|| / ||R|| over all changed matrices; those left out count in full."""
    lost = total = 0.0
    for key in job.shapes:
        matrix = job.read(key)
        total += float(matrix.square().sum(dtype=torch.float64))
        if key in pack.card.entries:
            matrix = matrix - pack.decode(key)
        lost += float(matrix.square().sum(dtype=torch.float64))
    return (lost / total) ** 0.5 if total else 0.0
