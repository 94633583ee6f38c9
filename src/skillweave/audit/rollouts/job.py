"""Audit a log of rollouts: the signals of each prompt, a calibrated score, and the parts of the suspects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from skillweave.audit.refusal import RefusalDetector
from skillweave.audit.rollouts.ablation import Ablated, Generate, Score, ablate
from skillweave.audit.rollouts.config import RolloutAuditConfig
from skillweave.audit.rollouts.groups import PromptGroup, read_groups
from skillweave.audit.rollouts.score import Judged, judge
from skillweave.audit.rollouts.signals import (
    SIGNALS,
    ChangePoint,
    SignalTable,
    change_p_value,
    measure,
    reference_values,
)
from skillweave.progress import share_of
from skillweave.terminal import one_line


@dataclass(frozen=True)
class AuditedLog:
    """The result of an audit of rollouts."""

    groups: list[PromptGroup]
    table: SignalTable
    judged: Judged
    change: ChangePoint | None
    change_p: float
    ablations: dict[int, list[Ablated]]
    notes: list[str]
    fpr: float

    @property
    def order(self) -> list[int]:
        """The indices of the prompts, most suspicious first."""
        return [int(at) for at in np.argsort(-self.judged.score, kind="stable")]


def audit_rollouts(
    config: RolloutAuditConfig,
    *,
    generate: Generate | None = None,
    score: Score | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> AuditedLog:
    """Audit a log. With ``generate`` and ``score``, the parts of the most suspicious prompts are left out in turn.

    Raises :class:`UserError` for a log without rollouts that can be read, and for a clean log that is too small.
    """
    refuses = RefusalDetector(config.refusal)
    groups, notes = read_groups(config.log, refuses)
    table = measure(groups, config.k)
    clean = None
    if config.clean is not None:
        clean_groups, clean_notes = read_groups(config.clean, refuses)
        clean = reference_values(clean_groups, groups, table, config.k)
        notes += [f"clean log: {note}" for note in clean_notes] + _unlike(groups, clean_groups)
    judged = judge(table.values, clean, config.fpr)
    notes = [refuses.described(), *_about(groups, table, judged, config), *notes]
    change, change_p = _run_change(groups)
    audited = AuditedLog(groups, table, judged, change, change_p, {}, notes, config.fpr)
    if generate is None or score is None:
        return audited
    for at in audited.order[: config.suspects]:
        say(f"leaving out the parts of: {one_line(groups[at].prompt, 60)}")
        audited.ablations[at] = ablate(
            groups[at].prompt, groups[at].gold, generate, score, refuses, samples=config.samples
        )
    return audited


def _about(groups: list[PromptGroup], table: SignalTable, judged: Judged, config: RolloutAuditConfig) -> list[str]:
    """What the result rests on, in sentences."""
    n = len(groups)
    notes = []
    both = sum(any(group.refused) and not all(group.refused) for group in groups)
    notes.append(
        f"{share_of(both, n, 'prompts')} have completions that refuse and others that comply: only there can the "
        "refusal-reward contrast be measured"
    )
    left_out = [name for name in SIGNALS if name not in judged.surprises]
    if left_out:
        why = " (it needs the gold answers in the log)" if "extra" in left_out else ""
        notes.append(f"signals that could not be computed: {', '.join(left_out)}{why}")
    few = sum(len(group) < 4 for group in groups)
    if few:
        notes.append(f"{share_of(few, n, 'prompts')} have fewer than 4 completions: little can be told of them")
    if judged.calibrated == "own log":
        notes.append(
            "no clean log was given: the threshold comes from the bulk of this log and an assumed tail. It promises no "
            "false-positive rate, and it fails if more than about a tenth of the prompts are poisoned. Give --clean"
        )
    else:
        notes.append(
            f"calibrated on {len(judged.clean):,} prompts of the clean log: on clean prompts like these at most "
            f"{config.fpr:.2%} are flagged, in expectation"
        )
    return notes


def _unlike(groups: list[PromptGroup], clean: list[PromptGroup]) -> list[str]:
    """A note if the clean log has much more or much less completions of a prompt: its signals are then not alike."""
    ours, theirs = (float(np.median([len(group) for group in found])) for found in (groups, clean))
    if max(ours, theirs) <= 2 * min(ours, theirs):
        return []
    return [
        f"the log has {ours:g} completions of a prompt (median), the clean log {theirs:g}: the signals of few "
        "completions scatter more, so the calibration does not hold; use a clean run of the same set-up"
    ]


def _run_change(groups: list[PromptGroup]) -> tuple[ChangePoint | None, float]:
    """The change-point of the share of refusals, over prompts that were mostly refused on at least one visit.

    To choose prompts by their first visit alone would make a fall likely by itself, and the p-value wrong.
    """
    steps: list[int] = []
    refused: list[bool] = []
    owners: list[int] = []
    for number, group in enumerate(groups):
        visits: dict[int, list[bool]] = {}
        for step, refuses in zip(group.steps, group.refused, strict=True):
            visits.setdefault(step, []).append(refuses)
        if len(visits) > 1 and max(float(np.mean(visit)) for visit in visits.values()) >= 0.5:
            steps += group.steps
            refused += group.refused
            owners += [number] * len(group)
    if not owners:
        return None, 1.0
    return change_p_value(steps, refused, owners)
