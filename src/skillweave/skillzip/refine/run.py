"""Refine a pack: the specialist answers, the factors are trained, and the better pack of the two is returned."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from skillweave.base import Answer, Base, Checkpoint, Prompt, open_base
from skillweave.base.prefix import opening_ids
from skillweave.delta import Delta, write_tuned
from skillweave.errors import UserError
from skillweave.files.recover import drop
from skillweave.pack import Skillpack
from skillweave.pack.card import refinement_text
from skillweave.pack.schema import Prefill
from skillweave.progress import console, share_of
from skillweave.skillzip.refine.config import RefineConfig
from skillweave.skillzip.refine.factors import coarseness, with_factors
from skillweave.skillzip.refine.prefill import check_shares_steps, judged, longest_record
from skillweave.skillzip.refine.student import Student
from skillweave.skillzip.refine.teacher import teacher_rows
from skillweave.skillzip.refine.train import Progress, train
from skillweave.weave.int8_backbone import INT8, put_into_int8

_LONGEST = 1.234e-05
"""No figure is longer than this in the card's JSON: a pack is weighed before it is refined."""


def placeholder(config: RefineConfig, prefill: Prefill) -> dict[str, Any]:
    """Return the records that :func:`refined` will write on the card, at least as long in JSON as they will be."""
    steps = config.steps_for(0, 1)
    counts = {"steps": steps, "best_step": steps, "prompts": config.prompts, "held_out": config.prompts}
    figures = dict.fromkeys(("kl_before", "kl_after", "tv_before", "tv_after"), _LONGEST)
    record = {"refined": False, **figures, **counts, **_form(config)}
    return {"refine": record} | ({"prefill": longest_record(config.prompts)} if prefill == "backbone" else {})


def check_examples(examples: Sequence[tuple[Prompt, Answer | None]] | None, config: RefineConfig) -> None:
    """Raise :class:`UserError` unless there are prompts to refine with, and answers if the settings ask for them."""
    if not examples or len(examples) < 2:
        raise UserError(
            f"refine needs at least 2 calibration prompts, and there {'is 1' if examples else 'are none'}: name a task "
            "with --task, or give zip_delta(..., calibration=[(prompt, answer), ...]); or remove refine"
        )
    if config.answers == "given":
        missing = sum(answer is None for _, answer in examples)
        if missing:
            raise UserError(
                f"refine.answers is 'given', and {share_of(missing, len(examples), 'prompts')} have no answer: give "
                "every prompt one, or set refine.answers=specialist"
            )


def refined(
    pack: Skillpack,
    base: Base,
    delta: Delta,
    examples: Sequence[tuple[Prompt, Answer | None]],
    config: RefineConfig,
    folder: Path,
    most_bytes: int,
    prefill: Prefill = "pack",
) -> Skillpack:
    """Return ``pack`` with factors that were tuned to the output distribution of base + delta.

    * The entries stay the same; ``card.codec.measured["refine"]`` says what was gained.
    * The pack never takes more than ``most_bytes``. Coded factors take more bytes when their codes grow; then the steps
      between the codes grow, too.
    * The pack is never worse than it was, by the total variation distance on the held-out prompts: if no step made it
      better, it keeps its factors.
    * ``folder`` keeps the specialist's probabilities and the state of the training. A call with the same arguments and
      folder continues where a killed one stopped.
    * The specialist is a second model, in float32. It is gone when the training begins: that needs only the base, the
      factors, and what the prompts of one step take.
    * With ``config.backbone`` "int8", the factors are tuned on a copy of the base in int8, which is freed afterwards.
      The specialist stays in float32.
    * With ``prefill`` "backbone", the factors are tuned for prompts that the plain base reads. The card says so if the
      pack then keeps enough of its gain (:func:`skillweave.skillzip.refine.prefill.judged`).

    Raises :class:`UserError` as :func:`check_examples` does, if no two prompts fit the context, if the base cannot be
    put into int8, and if the base cannot read the prompts of this pack.
    """
    check_examples(examples, config)
    served = _served(base, config).model
    opening = None
    if prefill == "backbone":
        check_shares_steps(served, pack)
        opening = opening_ids(pack.voice(base).tokenizer)
    chosen = examples[: config.prompts]
    if left := len(examples) - len(chosen):
        console.print(f"  {share_of(left, len(examples), 'prompts')} are not used for the refinement (refine.prompts)")
    rows = teacher_rows(
        specialist_opener(base, delta, folder), [(prompt, answer or "") for prompt, answer in chosen], config, folder
    )
    count = min(config.held_out, len(rows) // 2)
    if count == 0:
        raise UserError("refine needs at least 2 prompts that fit the base's context: give more, or shorter ones")
    if count < config.held_out:
        console.print(
            f"  only {count} prompts are held out, not {config.held_out}: there are {len(rows)}, and half of them train"
        )
    random.Random(config.seed).shuffle(rows)
    student = Student(served, pack, opening)
    if student.fixed:
        total = len(student.fixed) + len(student.trainable)
        console.print(
            f"  {share_of(len(student.fixed), total, 'matrices and stacks')} are not refined, because their products "
            f"cannot be added to the output of a layer ({student.fixed[0]})",
            soft_wrap=True,
        )
    if not student.trainable:
        console.print("  no matrix of the pack can be refined: it stays as it is")
        return _without_record(pack)
    coded = pack.card.coded
    progress = train(
        student,
        rows[count:],
        rows[:count],
        config,
        config.steps_for(most_bytes, pack.card.bytes.bf16_delta),
        folder,
        (lambda factors: coarseness(pack, factors, most_bytes)) if coded else lambda _: 1.0,
    )
    result = _better(pack, progress, {"prompts": len(rows), "held_out": count, **_form(config)})
    return result if opening is None else judged(served, pack, result, rows[:count])


def specialist_opener(base: Base, delta: Delta, folder: Path) -> Callable[[], Base]:
    """Return a function that opens the specialist, in float32 if the base's files are there.

    Tensors that transformers joins or renames while it loads are added on disk, in a model that is written below
    ``folder`` and deleted when it is open. All others are added in memory.
    """

    def opened() -> Base:
        if base.in_memory:
            return delta.apply(base)
        held = set(Checkpoint(base.model).names())
        if all(name in held for name in delta.names()):
            fresh = open_base(base.path, dtype="float32", device=base.model.device)
            return delta.apply(fresh, in_place=True)
        written = folder / "specialist"  # the next run removes what a kill leaves, because it has the same name
        try:
            write_tuned(base.path, delta, written, dtype="float32")
            return open_base(written, dtype="float32", device=base.model.device)
        finally:
            drop(written)

    return opened


def _served(base: Base, config: RefineConfig) -> Base:
    """Return the base as it serves the pack: ``base`` itself, or a copy whose linear layers are in int8."""
    if config.backbone != INT8:
        return base
    return put_into_int8(replace(base, model=copy.deepcopy(base.model)))


def _form(config: RefineConfig) -> dict[str, str]:
    return {} if config.backbone is None else {"backbone": config.backbone}


def _better(pack: Skillpack, progress: Progress, record: dict[str, Any]) -> Skillpack:
    """Return the pack with the best factors of the training, or ``pack`` if no step made it better; and say which.

    Its card gets the figures of the training and what else ``record`` holds.
    """
    before, after = progress.curve[0], progress.best_point
    better = after.tv < before.tv
    result = with_factors(pack, progress.best if better else {}, progress.best_coarser if better else 1.0)
    result.card.codec.measured["refine"] = {
        "refined": better,
        "kl_before": _shortened(before.kl),
        "kl_after": _shortened(after.kl),
        "tv_before": _shortened(before.tv),
        "tv_after": _shortened(after.tv),
        "steps": progress.step,
        "best_step": after.step,
        **record,
    }
    console.print(f"  refine: {refinement_text(result.card.codec.measured['refine'])}", soft_wrap=True)
    return result


def _without_record(pack: Skillpack) -> Skillpack:
    result = with_factors(pack, {})
    result.card.codec.measured.pop("refine", None)
    result.card.codec.measured.pop("prefill", None)
    result.card.prefill = "pack"
    return result


def _shortened(value: float) -> float:
    """Return a number with four digits, as JSON never longer than :data:`_LONGEST`."""
    return float(f"{value:.3e}")
