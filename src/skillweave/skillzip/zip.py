"""Turn a delta into a skillpack."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from skillweave.base import Answer, Base, Checkpoint, Prompt
from skillweave.base.sizes import embedding_rows
from skillweave.delta import Delta
from skillweave.delta.carry import compact
from skillweave.delta.config_values import recorded_values
from skillweave.delta.voice import carried_tokenizer
from skillweave.errors import UserError
from skillweave.files.hashes import digest
from skillweave.files.recover import drop
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
from skillweave.pack.probe import PackProbe, longest_probe
from skillweave.pack.schema import ROWS
from skillweave.pack.vocabulary import token_rows
from skillweave.progress import console, share_of
from skillweave.skillzip.codecs import get_codec
from skillweave.skillzip.config import ZipConfig, check_prefill
from skillweave.skillzip.decompositions import DecompositionStore
from skillweave.skillzip.draft import NO_LIMIT, Draft, Encoded, unreserved
from skillweave.skillzip.losses import change, measure, too_much_left_out
from skillweave.skillzip.plan import Plan, added, plan
from skillweave.skillzip.refine.run import check_examples, placeholder, refined
from skillweave.skillzip.refine.work import delta_digest, work_folder
from skillweave.skillzip.rows import bf16_bytes, resized, store_token_rows
from skillweave.skillzip.source import MatrixSource
from skillweave.weave.int8_backbone import INT8, is_int8
from skillweave.weave.packed_model import PackedModel
from skillweave.weave.prove import record

_DECOMPOSITIONS = "decompositions"
"""The folder in the work folder in which decompositions are kept until all matrices are written."""


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
    refine_on: Sequence[tuple[Prompt, Answer | None]] | None = None,
    work: str | Path | None = None,
) -> Skillpack:
    """Return the pack of ``delta``, whose files together take at most the config's bytes.

    What is stored of each changed tensor:

    * The weights of linear layers, embeddings, stacks of experts and other large matrices
      (:func:`skillweave.skillzip.plan.plan`) are written by the config's codec.
    * Rows of added tokens are stored as rows in bf16. Tensors that the base does not have are stored whole in bf16.
    * The rest (norms, biases, small convolutions) follows ``config.other``: "keep" stores bf16 differences, "drop"
      leaves these tensors at the base's values.
    * ``card.left_out`` names what is left out. ``card.codec.measured["left_out"]`` gives the share of each in the
      delta's squared norm, and also names stacks that lack some of their matrices.
    * The card gets a probe (:mod:`skillweave.weave.prove`), with which a model proves that it applies the pack.
    * Files that the delta carries (tokenizer, chat template, generation config) travel in the pack as differences from
      the base's, and count in its bytes.

    ``calibration`` holds (prompt, answer) pairs, which are tokenized by the tuned tokenizer. It may be None if the
    config asks for neither activation weighting nor smoothing.

    ``work`` is a folder of this zip's own. What was done is kept there, so a zip that was killed resumes, and memory
    holds the decompositions of a few matrices at a time. The caller deletes it when the pack is saved. Without it they
    are all in memory, and nothing is kept.

    With ``config.prefill`` "backbone", the refinement is for prompts that the plain base reads, and the card is marked
    if the pack keeps enough of its gain with them.

    With ``config.refine``, the factors are then tuned (:func:`skillweave.skillzip.refine.run.refined`). ``refine_on``
    holds the prompts for it, each with an answer or None; None stands for ``calibration``.

    Raises :class:`UserError`:

    * if the delta belongs to another base, or a tensor holds NaN or infinity;
    * if the base's linear layers are in int8;
    * if the codec is unknown, or it needs calibration and there is none;
    * if the budget is too small (the message names the least that would do);
    * if more than 5% of the delta would be left out, unless ``config.allow_left_out``;
    * if the config asks for a refinement, and there are no prompts for it;
    * if ``config.prefill`` is "backbone" without a refinement, or for a pack that needs steps of its own.
    """

    def unrefined(folder: Path | None) -> Skillpack:
        store = DecompositionStore(None if folder is None else folder / _DECOMPOSITIONS)
        try:
            return zip_once(delta, base, calibration, config, store, name=name, method=method, data=data, scores=scores)
        except UserError:
            if folder is not None:
                drop(folder)  # what was refused once would be refused again
            raise

    get_codec(config.codec)
    check_prefill(config)
    delta.check_base(base.fingerprint, base.ref, base.model.config)
    if is_int8(base):
        raise UserError(
            f"the linear layers of {base.ref} are in int8, and a delta is zipped on the base as its files hold it: "
            f"open the base without backbone {INT8} (refine.backbone={INT8} refines the pack for a base in {INT8})"
        )
    check_name(name)
    if config.needs_calibration and not calibration:
        raise UserError(
            "activation_aware and smoothing need calibration pairs (prompt, answer): give some, or set "
            "activation_aware=false and smoothing=null"
        )
    if config.refine is None and work is None:
        return _with_probe(unrefined(None), base)
    examples = None
    if config.refine is not None:
        examples = calibration if refine_on is None else refine_on
        check_examples(examples, config.refine)
    inputs = {
        "delta": delta_digest(delta) if work is not None else None,
        "base": [base.fingerprint, str(base.model.dtype), recorded_values(base.model.config)],
        "zip": config.model_dump(mode="json"),
        "examples": digest([examples, calibration]),
        "card": digest([name, method, data, scores]),
    }
    with work_folder(None if work is None else Path(work), inputs) as folder:
        if config.refine is None:
            return _with_probe(unrefined(folder), base)
        if not (folder / "pack").exists():
            unrefined(None if work is None else folder).save_pretrained(folder / "pack")
            drop(folder / _DECOMPOSITIONS)
        pack = Skillpack.from_pretrained(folder / "pack")
        most = max(unreserved(_limit(config, pack.card.bytes.bf16_delta)), pack.nbytes)
        pack = refined(pack, base, delta, examples or [], config.refine, folder, most, config.prefill)
    losses = measure(pack.card.entries, pack.tensors, delta, base.checkpoint)
    pack.card.codec.measured["weight_error"] = round(losses.error, 4)
    return _with_probe(pack, base)


def _with_probe(pack: Skillpack, base: Base) -> Skillpack:
    """Return the pack with the probe that proves, wherever it is loaded, that it acts as it does here."""
    probe: PackProbe | None = None
    packed = PackedModel(base.model)
    try:
        packed.add(packed.prepare(pack.card.name, pack))
        probe = record(packed, pack.card.name, base.tokenizer)
    except UserError as error:
        console.print(f"  the card gets no probe, because the pack cannot share its base: {error}", soft_wrap=True)
    pack.card.probe = probe
    pack.card.bytes = pack.weighed()
    return pack


def zip_once(
    delta: Delta,
    base: Base,
    calibration: Sequence[tuple[Prompt, Answer]] | None,
    config: ZipConfig,
    store: DecompositionStore,
    *,
    name: str,
    method: str,
    data: dict[str, Any] | None,
    scores: dict[str, Any] | None,
) -> Skillpack:
    """Return the pack of ``delta`` as the codec writes it, without a refinement; its probe only holds the place of one.

    ``store`` keeps the decompositions; one that already has them saves most of the work. The other arguments, and the
    errors, are those of :func:`zip_delta`. Gradients must be off.
    """
    checkpoint = base.checkpoint
    unchanged = {key for key in delta.names() if _unchanged(delta, checkpoint, key)}
    matrices = plan(delta, checkpoint, base.model, unchanged, calibrated=config.needs_calibration)
    stored_as_matrix = {piece.tensor for piece in matrices.pieces.values()}
    rest = [key for key in delta.names() if key not in stored_as_matrix and key not in unchanged]
    entries, tensors, left_out = _store_others(delta, checkpoint, rest, config.other)
    carried = compact(delta.carried, base.path)
    tokenizer = carried_tokenizer(carried, base)
    rows = store_token_rows(delta, checkpoint, tokenizer)
    entries |= rows.entries
    if not stored_as_matrix and not entries:
        raise UserError("the delta changes no tensor that a pack can hold: there is nothing to zip")
    _report(config, matrices, rows.rounded)
    delta_bytes = bf16_bytes(delta, checkpoint, unchanged)
    draft = Draft(
        card=PackCard(
            name=name,
            base=BaseRef(ref=base.ref, fingerprint=base.fingerprint),
            base_config=recorded_values(base.model.config),
            method=method,
            prefill=config.prefill,
            data=data or {},
            scores=scores or {},
            codec=Codec(
                name=config.codec,
                settings=config.settings(),
                measured={} if config.refine is None else placeholder(config.refine, config.prefill),
            ),
            bytes=PackBytes(bf16_delta=delta_bytes, bf16_matrices=matrices.bf16_bytes),
            probe=longest_probe(embedding_rows(base.model)),
            entries=entries,
            left_out=left_out,
        ),
        tensors=tensors | rows.tensors,
        carried=carried,
        plan=matrices,
        limit=_limit(config, delta_bytes),
        allow_left_out=config.allow_left_out,
    )
    if not matrices.pieces and draft.free_bytes({}) < 0:
        raise draft.refusal(draft.bytes_with({}))
    tuned_rows = {
        key.removesuffix(ROWS): (entry.shape[0], rows.tensors.get(key)) for key, entry in rows.entries.items()
    }
    source = MatrixSource(
        delta,
        base,
        matrices,
        examples=calibration or [],
        tokenizer=tokenizer,
        token_rows=token_rows(base.model, name, tuned_rows),
        decompositions=store,
    )
    encoded = get_codec(config.codec)(config, source, draft) if matrices.pieces else Encoded({}, {})
    losses = measure(draft.entries(encoded.entries), draft.all_tensors(encoded), delta, checkpoint)
    if losses.left_out > MOST_LEFT_OUT and not config.allow_left_out:
        raise UserError(too_much_left_out(losses, name))
    return draft.pack(encoded, losses)


def zipped(delta: Delta, base: Base, ratio: float) -> tuple[Delta, int]:
    """Return what a plain zip to ``ratio`` keeps of a delta, as a delta again, and the bytes of the pack.

    Raises :class:`UserError` if the ratio is too small for a pack.
    """
    pack = zip_delta(delta, base, None, ZipConfig(ratio=ratio, allow_left_out=True), name="zipped")
    return pack.unzip(), pack.nbytes


def _limit(config: ZipConfig, delta_bytes: int) -> int:
    """Return the most bytes that the pack may take."""
    if config.budget is not None:
        return config.budget
    return NO_LIMIT if config.ratio is None else int(config.ratio * delta_bytes)


def _unchanged(delta: Delta, checkpoint: Checkpoint, name: str) -> bool:
    """Return whether a tensor of the delta leaves all of the base's own numbers as they are.

    That is possible for an embedding that only gained rows, and for a tensor that an adapter saved along. A plain
    difference is not read for this: it counts as a change even if it is zero.
    """
    if added(checkpoint, name) or not (delta.whole(name) or resized(delta, checkpoint, name)):
        return False
    return not bool(change(delta, checkpoint, name).any())


def _store_others(
    delta: Delta, checkpoint: Checkpoint, names: Collection[str], policy: str
) -> tuple[dict[str, Entry], dict[str, torch.Tensor], list[str]]:
    """Return the entries and tensors of changed tensors that are no matrices, and the names of those left out."""
    entries: dict[str, Entry] = {}
    tensors: dict[str, torch.Tensor] = {}
    left_out: list[str] = []
    for name in names:
        if added(checkpoint, name):
            entries[name] = WholeEntry(shape=delta.shape(name))
            tensors[name] = delta.tensor(name).bfloat16()
            continue
        difference = change(delta, checkpoint, name)
        if policy == "keep":
            entries[name] = DifferenceEntry(shape=checkpoint.shape(name))
            tensors[name] = difference.bfloat16()
        else:
            left_out.append(name)
    return entries, tensors, left_out


def _report(config: ZipConfig, matrices: Plan, rounded: Sequence[str]) -> None:
    """Say on the console which added rows lose precision, and which matrices calibration cannot help."""
    if rounded:
        console.print(f"  the added rows of {' and '.join(rounded)} are rounded to bfloat16", soft_wrap=True)
    unwatched = [key for group, keys in matrices.groups.items() if group not in matrices.modules for key in keys]
    if config.needs_calibration and unwatched:
        console.print(
            f"  {share_of(len(unwatched), len(matrices.pieces), 'matrices')} are zipped without calibration: they are "
            "not linear layers, or it is not known which token is which in their input "
            f"({unwatched[0]})",
            soft_wrap=True,
        )
