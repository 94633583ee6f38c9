"""Decide whether a pack may leave the reading of prompts to the backbone: what it keeps of its gain if it does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from skillweave.errors import UserError
from skillweave.pack import Skillpack
from skillweave.pack.card import prefill_text
from skillweave.progress import console
from skillweave.skillzip.refine.forward import answer_logits
from skillweave.skillzip.refine.student import Student
from skillweave.skillzip.refine.teacher import TeacherRow
from skillweave.skillzip.refine.train import divergence, divergence_of
from skillweave.weave.packed_model import PackedModel

LEAST_RETAINED = 0.97
"""A pack whose prompts the backbone reads must keep this share of the gain that it has when it reads them itself."""
_LONGEST_KL, _LONGEST_SHARE = 1.234e-05, -0.1234
"""No figure is longer than these in the card's JSON: a pack is weighed before it is refined."""


def longest_record(held_out: int) -> dict[str, Any]:
    """Return a record that is at least as long, in JSON, as the one that :func:`judged` writes on the card."""
    figures = dict.fromkeys(("kl_base", "kl_pack", "kl_backbone"), _LONGEST_KL)
    return {"kept": False, "retained": _LONGEST_SHARE, **figures, "held_out": held_out}


def check_shares_steps(model: Any, pack: Skillpack) -> None:
    """Raise :class:`UserError` if not every token of a step can have a pack of its own with this one."""
    packed, name = PackedModel(model), pack.card.name
    packed.add(packed.prepare(name, pack))
    if (why := packed.why_own_steps(name)) is not None:
        raise UserError(f"the backbone cannot read the prompts of the pack '{name}', because {why}: leave out prefill")


def retained_gain(base: float, own: float, backbone: float) -> float:
    """Return the share of a pack's gain that is kept if the backbone reads the prompts, from three losses.

    A loss is the KL(specialist || model) of an answer token: of the plain base, of the pack if it reads the prompts
    itself, and of the pack if the backbone reads them. The gain is what the pack takes off the loss of the base. It is
    NaN for a pack that takes nothing off.
    """
    return (base - backbone) / (base - own) if own < base else float("nan")


def judged(model: Any, before: Skillpack, after: Skillpack, rows: Sequence[TeacherRow]) -> Skillpack:
    """Return ``after``, marked ``prefill: backbone``, if it keeps :data:`LEAST_RETAINED` of its gain.

    Else return the pack that is better if it reads its prompts itself, unmarked. The console says which.

    * ``before`` and ``after`` are the pack before and after its refinement for the backbone's prefill
    * the gain is that of the better of the two if it reads its prompts itself, on the held-out ``rows``; as in the
      training, the better one has the smaller total variation distance
    """
    base = divergence_of(partial(answer_logits, model), model, rows).kl
    own = {}
    for which, pack in (("before", before), ("after", after)):
        student = Student(model, pack)
        with student.running(student.float_factors()):
            own[which] = divergence(student, rows)
    record = after.card.codec.measured["refine"]
    backbone = record["kl_after"] if record["refined"] else record["kl_before"]
    best = min((own["after"], own["before"]), key=lambda found: found.tv).kl
    retained = retained_gain(base, best, backbone)
    kept = retained >= LEAST_RETAINED
    result = after if kept or own["after"].tv <= own["before"].tv else before
    result.card.prefill = "backbone" if kept else "pack"
    if result is before:  # its factors are as they were
        result.card.codec.measured["refine"] = {**record, "refined": False}
    result.card.codec.measured["prefill"] = {
        "kept": kept,
        "retained": round(retained, 4) if retained == retained else None,
        "kl_base": float(f"{base:.3e}"),
        "kl_pack": float(f"{best:.3e}"),
        "kl_backbone": backbone,
        "held_out": len(rows),
    }
    console.print(f"  prefill: {prefill_text(result.card)}", soft_wrap=True)
    return result
