"""A delta becomes a skillpack."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from skillweave.base import Answer, Base, Checkpoint, Prompt
from skillweave.base.voice import Voice
from skillweave.delta import Delta
from skillweave.delta.carry import compact
from skillweave.delta.voice import carried_tokenizer
from skillweave.errors import UserError
from skillweave.pack import (
    BaseRef,
    Codec,
    DifferenceEntry,
    Entry,
    PackBytes,
    PackCard,
    Skillpack,
    WholeEntry,
    check_name,
)
from skillweave.pack.schema import ROWS
from skillweave.pack.vocabulary import token_rows, vocabularies
from skillweave.progress import console
from skillweave.skillzip.calibrate import Moments, calibrate, calibration_rows, input_groups, linear_names
from skillweave.skillzip.codecs import get_codec
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.job import Job, Written, measures
from skillweave.skillzip.rows import bf16_bytes, find_token_rows, resized, shared_change


@torch.no_grad()
def zip_delta(
    delta: Delta,
    base: Base,
    calibration: Sequence[tuple[Prompt, Answer]] | None,
    config: ZipConfig,
    *,
    name: str,
    method: str = "unknown",
    data: dict[str, Any] | None = None,
    scores: dict[str, Any] | None = None,
) -> Skillpack:
    """The pack of ``delta`` within the config's bytes, all three files counted.

    ``calibration`` holds (prompt, answer) pairs; it may be None where the config asks for neither activation weighting
    nor smoothing. The weights of linear layers are written low-rank. Tensors that have no counterpart in the base are
    stored whole, in bf16; rows of added tokens as rows. The rest (norms, biases,
    embeddings) follows ``config.other``: "drop" leaves them at the base's values; "keep" stores those with one axis as
    bf16 differences and drops the others. What is dropped is named in ``card.left_out``, with
    ||delta|| / ||base|| of each in ``card.codec.measured["left_out"]``. Files that the
    delta carries (tokenizer, chat template, generation config) travel in the pack, stored against the base's, and count
    in its bytes; calibration prompts are written by that tokenizer.

    Raises :class:`UserError` for a delta of another base, a tensor with NaN, a codec of unknown name, missing
    calibration, and a budget too small (naming the least that would do).
    """
    codec = get_codec(config.codec)
    delta.check_base(base.fingerprint, base.ref)
    if config.needs_calibration and not calibration:
        raise UserError(
            "activation_aware and smoothing need calibration pairs (prompt, answer): give some, or set "
            "activation_aware=false and smoothing=null"
        )
    checkpoint = base.checkpoint
    check_name(name)
    same = {key for key in delta.names() if _unchanged(delta, checkpoint, key)}
    shapes = {key: shape for key, shape in _matrices(delta, checkpoint, base.model).items() if key not in same}
    carried = compact(delta.carried, base.path)
    voice = Voice(carried_tokenizer(carried, base))
    rows = find_token_rows(delta, checkpoint, voice.tokenizer)
    card = PackCard(
        name=name,
        base=BaseRef(ref=base.ref, fingerprint=base.fingerprint),
        method=method,
        data=data or {},
        scores=scores or {},
        codec=Codec(name=config.codec, settings=config.settings()),
        bytes=PackBytes(
            bf16_delta=bf16_bytes(delta, checkpoint, same),
            bf16_matrices=2 * sum(out * in_ for out, in_ in shapes.values()),
        ),
    )
    others = [key for key in delta.names() if key not in shapes and key not in same]
    tensors = {**_place_others(card, delta, checkpoint, others, config.other), **rows.tensors}
    card.entries = {**card.entries, **rows.entries}
    if rows.rounded:
        console.print(f"  the added rows of {' and '.join(rows.rounded)} are rounded to bfloat16", soft_wrap=True)
    if not shapes and not card.entries:
        raise UserError("the delta changes no tensor that a pack can hold: there is nothing to zip")
    limit = config.budget if config.budget is not None else int((config.ratio or 0) * card.bytes.bf16_delta)
    groups = _groups_of(base.model, shapes)
    tokens = token_rows(
        base.model,
        name,
        {key.removesuffix(ROWS): (entry.shape[0], rows.tensors.get(key)) for key, entry in rows.entries.items()},
    )
    known = functools.cache(
        lambda: calibration_rows(
            base.model, voice.tokenizer, calibration or [], None if tokens is None else tokens.rows
        )
    )

    def moments(wanted: list[str]) -> dict[str, Moments]:
        modules = {group: [key.removesuffix(".weight") for key in groups[group]] for group in wanted}
        with vocabularies(base.model, [tokens], every=True):
            return calibrate(base.model, known(), modules)

    job = Job(
        config=config,
        shapes=shapes,
        groups=groups,
        read=lambda key: change(delta, checkpoint, key).float(),
        moments=moments,
        card=card,
        limit=limit,
        tensors=tensors,
        carried=carried,
    )
    if not shapes and job.free_bytes({}) < 0:
        raise job.refuse({})
    written = codec(job) if shapes else Written({}, {})
    pack = job.finished(written, {})
    ranks = [entry.rank for entry in written.entries.values()]
    pack.card.codec.measured |= measures(_weight_error(pack, job), ranks)
    pack.card.bytes = pack.weighed()
    return pack


def zipped(delta: Delta, base: Base, ratio: float) -> tuple[Delta, int]:
    """What a plain zip to ``ratio`` leaves of a delta, as a delta again, and the bytes of the pack.

    Raises :class:`UserError` where the ratio is too small for a pack.
    """
    pack = zip_delta(delta, base, None, ZipConfig(ratio=ratio), name="zipped")
    return pack.unzip(), pack.nbytes


def change(delta: Delta, checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """theta - theta_base of one tensor, also where the delta has it whole but the base has its like (a LoRA's
    ``modules_to_save``). A tensor with NaN or infinity is a :class:`UserError`."""
    tensor = delta.tensor(name)
    if resized(delta, checkpoint, name):
        tensor = shared_change(delta, checkpoint, name)
    elif delta.whole(name):
        tensor = tensor.float() - checkpoint.tensor(name).float().cpu()
    if not bool(torch.isfinite(tensor).all()):
        raise UserError(f"the delta of '{name}' holds NaN or infinity: the training run diverged; zip an earlier one")
    return tensor


def _added(delta: Delta, checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor has no counterpart in the base."""
    return name not in checkpoint


def _unchanged(delta: Delta, checkpoint: Checkpoint, name: str) -> bool:
    """Whether all that the delta says of the base's own numbers is that they stay: of an embedding that only gained
    rows, or that an adapter saved along."""
    asked = not _added(delta, checkpoint, name) and (delta.whole(name) or resized(delta, checkpoint, name))
    return asked and not bool(change(delta, checkpoint, name).any())


def _matrices(delta: Delta, checkpoint: Checkpoint, model: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of the changed weights of linear layers, in the model's order; the head counts where it is untied."""
    weights = [f"{name}.weight" for name in linear_names(model)]
    return {
        key: (checkpoint.shape(key)[0], checkpoint.shape(key)[1])
        for key in weights
        if key in delta and key not in checkpoint.tied and not _added(delta, checkpoint, key)
    }


def _place_others(
    card: PackCard, delta: Delta, checkpoint: Checkpoint, names: list[str], policy: str
) -> dict[str, torch.Tensor]:
    """What to do with changed tensors that are no linear layer's weight: the tensors to store. Their entries, and what
    is left out, go on the card."""
    tensors: dict[str, torch.Tensor] = {}
    entries: dict[str, Entry] = {}
    left_out: dict[str, float | None] = {}
    for key in names:
        if _added(delta, checkpoint, key):
            entries[key] = WholeEntry(shape=delta.shape(key))
            tensors[key] = delta.tensor(key).bfloat16()
            continue
        tensor = change(delta, checkpoint, key)
        if policy == "keep" and tensor.dim() == 1:
            entries[key] = DifferenceEntry(shape=checkpoint.shape(key))
            tensors[key] = tensor.bfloat16()
        else:
            norm = float(checkpoint.tensor(key).float().norm())
            left_out[key] = float(f"{float(tensor.float().norm()) / norm:.2g}") if norm else None
    card.entries = entries
    card.left_out = list(left_out)
    card.codec.measured = {"left_out": left_out} if left_out else {}
    return tensors


def _groups_of(model: nn.Module, shapes: dict[str, tuple[int, int]]) -> dict[str, list[str]]:
    """The groups of :func:`input_groups`, changed weights only, under the names of the whole groups."""
    groups = {group: [f"{name}.weight" for name in members] for group, members in input_groups(model).items()}
    changed = {group: [key for key in members if key in shapes] for group, members in groups.items()}
    return {group: members for group, members in changed.items() if members}


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
