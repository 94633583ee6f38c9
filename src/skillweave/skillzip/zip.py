"""A delta becomes a skillpack."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

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
from skillweave.pack.left_out import MOST_LEFT_OUT
from skillweave.pack.schema import ROWS
from skillweave.pack.vocabulary import token_rows, vocabularies
from skillweave.progress import console, share_of
from skillweave.skillzip.calibrate import Moments, calibrate, calibration_rows
from skillweave.skillzip.codecs import get_codec
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.job import Job, Written, measures, shown_share
from skillweave.skillzip.losses import change, measure, too_much_left_out
from skillweave.skillzip.plan import Plan, added, plan
from skillweave.skillzip.rows import bf16_bytes, find_token_rows, resized


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
    (:func:`skillweave.skillzip.plan.plan`) are written low-rank. Rows of added tokens are stored as rows, in bf16, and
    so are tensors that have no counterpart in the base, whole. The rest (norms, biases, small convolutions) follows
    ``config.other``: "keep" stores bf16 differences, "drop" leaves them at the base's values. What is left out is named
    in ``card.left_out``, and ``card.codec.measured["left_out"]`` has the share of each in the delta's squared norm; a
    stack that lacks some of its matrices is there too. Files that the delta carries (tokenizer, chat template,
    generation config) travel in the pack, stored against the base's, and count in its bytes; calibration prompts are
    written by that tokenizer.

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
    same = {key for key in delta.names() if _unchanged(delta, checkpoint, key)}
    found = plan(delta, checkpoint, base.model, same, calibrated=config.needs_calibration)
    check_name(name)
    same = {key for key in delta.names() if _unchanged(delta, checkpoint, key)}
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
        bytes=PackBytes(bf16_delta=bf16_bytes(delta, checkpoint, same), bf16_matrices=_bf16(found)),
    )
    held = {piece.tensor for piece in found.pieces.values()}
    others = [key for key in delta.names() if key not in held and key not in same]
    tensors, left = _place_others(card, delta, checkpoint, others, config.other)
    tensors |= rows.tensors
    card.entries = {**card.entries, **rows.entries}
    if rows.rounded:
        console.print(f"  the added rows of {' and '.join(rows.rounded)} are rounded to bfloat16", soft_wrap=True)
    if not held and not card.entries:
        raise UserError("the delta changes no tensor that a pack can hold: there is nothing to zip")
    if unwatched := [key for group in found.groups if group not in found.modules for key in found.groups[group]]:
        _say_unweighted(config, unwatched, len(found.pieces))
    limit = config.budget if config.budget is not None else int((config.ratio or 0) * card.bytes.bf16_delta)
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
        watched = {group: found.modules[group] for group in wanted if group in found.modules}
        with vocabularies(base.model, [tokens], every=True):
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
        carried=carried,
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


def _unchanged(delta: Delta, checkpoint: Checkpoint, name: str) -> bool:
    """Whether all that the delta says of the base's own numbers is that they stay: of an embedding that only gained
    rows, or that an adapter saved along."""
    asked = not added(checkpoint, name) and (delta.whole(name) or resized(delta, checkpoint, name))
    return asked and not bool(change(delta, checkpoint, name).any())


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
        if added(checkpoint, key):
            entries[key] = WholeEntry(shape=delta.shape(key))
            tensors[key] = delta.tensor(key).bfloat16()
            continue
        tensor = change(delta, checkpoint, key)
        if policy == "keep":
            entries[key] = DifferenceEntry(shape=checkpoint.shape(key))
            tensors[key] = tensor.bfloat16()
        else:
            left.append(key)
    card.entries = entries
    card.left_out = list(left)
    return tensors, left
