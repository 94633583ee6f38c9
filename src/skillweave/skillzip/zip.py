"""A delta becomes a skillpack."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from skillweave.base import Answer, Base, Checkpoint, Prompt
from skillweave.delta import Delta
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
from skillweave.progress import console, share_of
from skillweave.skillzip.allocate import MOST_LEFT_OUT
from skillweave.skillzip.calibrate import Moments, calibrate, calibration_rows
from skillweave.skillzip.codecs import get_codec
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.job import Job, Written, measures, shown_share
from skillweave.skillzip.losses import change, measure, too_much_left_out
from skillweave.skillzip.plan import Plan, added, plan


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
    nor smoothing. The weights of linear layers, embeddings, stacks of experts and other large matrices
    (:func:`skillweave.skillzip.plan.plan`) are written low-rank. Tensors that have no counterpart in the base are
    stored whole, in bf16. The rest (norms, biases, small convolutions) follows ``config.other``: "keep" stores bf16
    differences, "drop" leaves them at the base's values. What is left out is named in ``card.left_out``, and
    ``card.codec.measured["left_out"]`` has the share of each in the squared norm of the delta; a stack that lacks some
    of its matrices is there too. Files that the delta carries (a changed tokenizer), which a pack does not, are named.

    Raises :class:`UserError` for a delta of another base, a tensor with NaN, a codec of unknown name, missing
    calibration, a budget too small (naming the least that would do), and, unless ``config.allow_left_out``, where more
    than 5% of the delta would be left out.
    """
    codec = get_codec(config.codec)
    delta.check_base(base.fingerprint, base.ref)
    if config.needs_calibration and not calibration:
        raise UserError(
            "activation_aware and smoothing need calibration pairs (prompt, answer): give some, or set "
            "activation_aware=false and smoothing=null"
        )
    checkpoint = base.checkpoint
    found = plan(delta, checkpoint, base.model, calibrated=config.needs_calibration)
    check_name(name)
    card = PackCard(
        name=name,
        base=BaseRef(ref=base.ref, fingerprint=base.fingerprint),
        method=method,
        data=data or {},
        scores=scores or {},
        codec=Codec(name=config.codec, settings=config.settings()),
        bytes=PackBytes(bf16_delta=delta.bf16_nbytes, bf16_matrices=_bf16(found)),
    )
    held = {piece.tensor for piece in found.pieces.values()}
    others = [key for key in delta.names() if key not in held]
    tensors, left = _place_others(card, delta, checkpoint, others, config.other)
    if not held and not card.entries:
        raise UserError("the delta changes no tensor that a pack can hold: there is nothing to zip")
    if unwatched := [key for group in found.groups if group not in found.modules for key in found.groups[group]]:
        _say_unweighted(config, unwatched, len(found.pieces))
    limit = config.budget if config.budget is not None else int((config.ratio or 0) * delta.bf16_nbytes)
    known = functools.cache(lambda: calibration_rows(base.model, base.tokenizer, calibration or []))

    def moments(wanted: list[str]) -> dict[str, Moments]:
        watched = {group: found.modules[group] for group in wanted if group in found.modules}
        return calibrate(base.model, known(), watched) if watched else {}

    job = Job(
        config=config,
        plan=found,
        read=_reader(delta, checkpoint, found),
        moments=moments,
        card=card,
        limit=limit,
        tensors=tensors,
        left=left,
    )
    if not held and job.free_bytes({}) < 0:
        raise job.refuse({})
    written = codec(job) if held else Written({}, {})
    pack = job.finished(written, {})
    ranks = [entry.rank for entry in written.entries.values()]
    losses = measure(pack, delta, checkpoint)
    if losses.left_out > MOST_LEFT_OUT and not config.allow_left_out:
        raise UserError(too_much_left_out(losses, name))
    measured = pack.card.codec.measured
    if "left_out" in measured:
        measured["left_out"] = {key: shown_share(losses.shares.get(key, 0.0)) for key in measured["left_out"]}
    pack.card.codec.measured = {**measured, **measures(losses.error, losses.left_out, ranks)}
    pack.card.bytes = pack.weighed()
    return pack


def zipped(delta: Delta, base: Base, ratio: float) -> tuple[Delta, int]:
    """What a plain zip to ``ratio`` leaves of a delta, as a delta again, and the bytes of the pack.

    Raises :class:`UserError` where the ratio is too small for a pack.
    """
    pack = zip_delta(delta, base, None, ZipConfig(ratio=ratio, allow_left_out=True), name="zipped")
    return pack.unzip(), pack.nbytes


def _reader(delta: Delta, checkpoint: Checkpoint, found: Plan) -> Callable[[str], torch.Tensor]:
    """The delta of one matrix (out, in), float32. The last stack stays in memory while its matrices are read."""
    stack = functools.lru_cache(maxsize=1)(lambda name: change(delta, checkpoint, name))

    def read(key: str) -> torch.Tensor:
        piece = found.pieces[key]
        if piece.index is not None:
            return stack(piece.tensor).reshape(-1, *piece.shape)[piece.index].float()
        tensor = change(delta, checkpoint, piece.tensor).float()
        return tensor.T.contiguous() if piece.transposed else tensor.reshape(piece.shape)

    return read


def _bf16(found: Plan) -> int:
    return 2 * sum(out * in_ for out, in_ in (piece.shape for piece in found.pieces.values()))


def _say_unweighted(config: ZipConfig, keys: list[str], of: int) -> None:
    if config.needs_calibration:
        console.print(
            f"  {share_of(len(keys), of, 'matrices')} are zipped without calibration: they are no linear layer, or it "
            f"is not known which token is which in their input ({keys[0]})",
            soft_wrap=True,
        )


def _place_others(
    card: PackCard, delta: Delta, checkpoint: Checkpoint, names: list[str], policy: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """What becomes of the changed tensors that are no matrices: those to store, and the names of those left out.

    The entries, and what is left out, go on the card.
    """
    tensors: dict[str, torch.Tensor] = {}
    entries: dict[str, Entry] = {}
    left: list[str] = []
    for key in names:
        if added(delta, checkpoint, key):
            entries[key] = WholeEntry(shape=delta.shape(key))
            tensors[key] = delta.tensor(key).bfloat16()
            continue
        tensor = change(delta, checkpoint, key)
        if policy == "keep":
            entries[key] = DifferenceEntry(shape=delta.shape(key))
            tensors[key] = tensor.bfloat16()
        else:
            left.append(key)
    card.entries = entries
    card.left_out = [*left, *(file.name for file in delta.carried)]
    return tensors, left
