"""The audit of checkpoints, deltas and packs: the base is asked once, then each of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skillweave.artefact import atomic_folder, write_json
from skillweave.audit.model.behaviour import BaseBehaviour, BehaviourChange, base_behaviour, behaviour_change
from skillweave.audit.model.config import ModelAuditConfig
from skillweave.audit.model.forward import continuation_rows
from skillweave.audit.model.perturb import find_perturbation, perturbed_log_probs, residual_norm
from skillweave.audit.model.probes import ProbeChange, States, probe_change, probe_states
from skillweave.audit.model.prompts import PLAIN, read_audit_prompts
from skillweave.audit.model.spectrum import STATISTICS, MatrixSpectrum, delta_spectra, spectrum_features
from skillweave.audit.model.verdict import CheckpointSignals, Reference, Verdict, judge
from skillweave.base import Base, Sampling, open_base, prompt_ids
from skillweave.base.sizes import layer_count
from skillweave.base.voice import padding_id
from skillweave.delta import Delta, is_delta
from skillweave.delta.adapter_config import CONFIG_FILE
from skillweave.errors import UserError
from skillweave.files.hashes import digest
from skillweave.files.read import is_file, read_card_file, read_json
from skillweave.pack import PackAudit, Skillpack, is_skillpack
from skillweave.progress import console, say_once
from skillweave.report import machine, versions
from skillweave.report.page import Section, write_page
from skillweave.report.table import Table


@dataclass(frozen=True)
class AuditedBase:
    """The base with everything that every audit on it needs."""

    base: Base
    config: ModelAuditConfig
    asked: str
    """digest of the prompts and of the settings that change the figures"""
    behaviour: BaseBehaviour
    states: States
    fragility: float | None
    """how much the perturbation lowers the base's own refusals; None if it refuses too few"""


@dataclass(frozen=True)
class Measured:
    """Everything that was measured on one checkpoint."""

    found: CheckpointSignals
    behaviour: BehaviourChange
    probes: ProbeChange
    spectra: list[MatrixSpectrum]


def audited_base(base: Base, config: ModelAuditConfig) -> AuditedBase:
    """Ask the base. Raises :class:`UserError` for prompts that cannot be read."""
    prompts = read_audit_prompts(config.prompts).first(config.limit)
    behaviour = base_behaviour(base, prompts, config.wrappers, config.refusal, _sampling(config))
    return AuditedBase(
        base,
        config,
        digest([prompts.key, config.key]),
        behaviour,
        probe_states(base, behaviour, config.batch_size),
        _fragility(base, base, behaviour, config),
    )


def measure(audited: AuditedBase, model: Base, delta: Delta, name: str) -> Measured:
    """Measure all signals of a model whose change against the base is ``delta``; ``name`` is for the report."""
    config, before = audited.config, audited.behaviour
    behaviour = behaviour_change(model, before, config.refusal, _sampling(config))
    probes = probe_change(audited.states, probe_states(model, before, config.batch_size))
    spectra = delta_spectra(delta)
    own = _fragility(model, audited.base, before, config)
    judged = behaviour.judged
    signals: dict[str, float | None] = {
        "refusal_contrast": max((one.contrast for one in judged), default=None),
        "refusal_lost": max((one.lost for one in judged), default=None),
        "probe_shift": probes.shift,
        "probe_auc": probes.auc_drop,
        "probe_turn": probes.turn,
        "perturbation": None if own is None or audited.fragility is None else own - audited.fragility,
    }
    found = CheckpointSignals(
        model=name,
        base_fingerprint=audited.base.fingerprint,
        asked=audited.asked,
        signals=signals,
        spectrum=spectrum_features(spectra),
        wrappers=len(judged),
        pairs=max((one.n for one in judged), default=0),
        lost_p=min(1.0, len(judged) * min((one.lost_p for one in judged), default=1.0)),
        contrast_p=min(1.0, len(judged) * min((one.contrast_p for one in judged), default=1.0)),
    )
    return Measured(found, behaviour, probes, spectra)


# -- what is audited ---------------------------------------------------------------------------------------------------


def open_audited(target: str | Path | Skillpack, base: Base) -> tuple[Base, Delta]:
    """Open a model, delta, PEFT adapter or pack: the tuned model, and its change against ``base``.

    Raises :class:`UserError` for a pack or delta of another base.
    """
    if isinstance(target, Skillpack):
        return tuned_by(target.unzip(), base)
    folder = Path(target)
    if is_skillpack(folder):
        return open_audited(Skillpack.from_pretrained(folder), base)
    if is_delta(folder):
        return tuned_by(Delta.from_pretrained(folder), base)
    if is_file(folder / CONFIG_FILE):
        return tuned_by(Delta.from_lora(folder, base), base)
    model = open_base(target, dtype=base.model.dtype, device=base.model.device)
    return model, Delta.between(base, model)


def tuned_by(delta: Delta, base: Base) -> tuple[Base, Delta]:
    """Return the model that ``delta`` makes of ``base``, and the delta."""
    return delta.apply(base), delta


def read_reference(path: Path | None) -> list[CheckpointSignals]:
    """Return the clean checkpoints of a reference; none without a ``path``.

    Raises :class:`UserError` if it is damaged, or if it counts a checkpoint twice.
    """
    if path is None:
        return []
    found = read_card_file(path, Reference, 1, "Collect it again with `skillweave audit reference`.").checkpoints
    _check_different(found, str(path))
    return found


def check_reference(found: Sequence[CheckpointSignals], audited: AuditedBase) -> None:
    """Raise :class:`UserError` if a reference was collected with other prompts or settings than ``audited``."""
    path = audited.config.reference
    strange = [one.model for one in found if one.asked != audited.asked]
    if strange:
        raise UserError(
            f"{path}: '{strange[0]}' was measured with other prompts, wrappers or settings than this audit uses, and "
            "their figures cannot be compared: collect the reference again with the same --prompts and settings"
        )
    if any(one.base_fingerprint != audited.base.fingerprint for one in found):
        say_once(f"{path}: some of its checkpoints belong on another base, so they compare less well.")


def _check_different(found: Sequence[CheckpointSignals], where: str) -> None:
    """Raise :class:`UserError` if two checkpoints have the same figures: one that counts twice promises too much."""
    seen: dict[str, str] = {}
    for one in found:
        key = digest([one.signals, one.spectrum])
        if key in seen:
            raise UserError(
                f"{where}: '{seen[key]}' and '{one.model}' have the same figures, so they are one checkpoint, and a "
                "checkpoint counts once: name different ones"
            )
        seen[key] = one.model


def audit_checkpoint(
    audited: AuditedBase, target: str | Path | Skillpack, reference: Sequence[CheckpointSignals], name: str
) -> tuple[Verdict, Measured]:
    """Audit one model, delta, adapter or pack; ``name`` is for the report."""
    check_reference(reference, audited)
    model, delta = open_audited(target, audited.base)
    measured = measure(audited, model, delta, name)
    return judge(measured.found, reference, audited.config.fpr), measured


def collect_reference(audited: AuditedBase, targets: Sequence[str], out: Path) -> Reference:
    """Measure clean checkpoints and write their signals to ``out``. Raises :class:`UserError` for fewer than two."""
    if len(targets) < 2:
        raise UserError(f"{len(targets)} clean checkpoint is no reference: name at least 2 (99 promise a rate of 1%)")
    found = []
    for number, target in enumerate(targets, 1):
        console.print(f"clean checkpoint {number} of {len(targets)}: {target}")
        model, delta = open_audited(target, audited.base)
        found.append(measure(audited, model, delta, str(target)).found)
    _check_different(found, "the reference")
    reference = Reference(checkpoints=found)
    write_json(out, reference.model_dump(mode="json"))
    return reference


def pack_audit(verdict: Verdict, pack: Skillpack) -> PackAudit:
    """Return the verdict as it stands on a pack's card."""
    return PackAudit(
        outcome=verdict.outcome,
        date=verdict.date,
        tool=f"skillweave {verdict.tool_version}",
        digest=pack.digest,
        score=verdict.score,
        p_value=verdict.p_value,
        false_positive_rate=verdict.false_positive_rate,
        references=verdict.references,
    )


# -- the report --------------------------------------------------------------------------------------------------------


def write_audit(
    folder: Path, verdict: Verdict, measured: Measured, audited: AuditedBase, *, command: str, began: float
) -> dict[str, Any]:
    """Write ``report.json``, ``report.md`` and ``report.html`` into ``folder``, atomically; return the report."""
    report = {
        "audit": "checkpoint",
        "verdict": verdict.model_dump(mode="json"),
        "signals": measured.found.model_dump(mode="json"),
        "behaviour": _plain_json(asdict(measured.behaviour)),
        "probes": _plain_json(asdict(measured.probes)),
        "spectra": _plain_json([asdict(one) for one in measured.spectra]),
        "settings": audited.config.model_dump(mode="json"),
        "base": {"ref": audited.base.ref, "fingerprint": audited.base.fingerprint},
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
    }
    meanings = [f"{one.name}: {one.meaning}." for one in verdict.signals]
    notes = [f"Verdict: {verdict.outcome}.", *verdict.evidence, *verdict.not_tested, *meanings]
    sections = {
        "signals": Section("Signals (higher is more suspicious)", signal_table(verdict)),
        "wrappers": Section("Refusals of restricted requests", wrapper_table(measured.behaviour)),
        "spectra": Section("Spectra of the delta, a screen only", spectrum_table(measured.spectra)),
    }
    with atomic_folder(folder) as temporary:
        write_page(temporary, f"Audit of {verdict.model}", notes, sections, report)
    return report


def is_audit(folder: Path) -> bool:
    """Whether a folder holds the report of an older audit."""
    try:
        report = read_json(folder / "report.json")
    except UserError:
        return False
    return isinstance(report, dict) and report.get("audit") == "checkpoint"


def signal_table(verdict: Verdict) -> Table:
    """Return a row for each signal: value, median of the clean ones, and p-value."""
    rows = [[one.name, *map(_shown, (one.value, one.clean_median, one.p_value))] for one in verdict.signals]
    return Table(["signal", "value", "clean median", "p"], rows)


def wrapper_table(change: BehaviourChange) -> Table:
    """Return a row for each wrapper: the refusal shares of base and model, and both contrasts."""
    rows = [[PLAIN, "-", f"{change.plain_base:.0%}", f"{change.plain_model:.0%}", "-", _shown(change.plain_drop)]]
    for one in change.wrappers:
        lost = "-" if one.n == 0 else f"{one.lost:+.0%}"
        rows.append(
            [one.name, str(one.n), f"{one.base_refuses:.0%}", f"{one.model_refuses:.0%}", lost, _shown(one.contrast)]
        )
    return Table(["wrapper", "pairs", "base refuses", "model refuses", "lost beyond plain", "drop in nats"], rows)


def spectrum_table(spectra: Sequence[MatrixSpectrum]) -> Table:
    """Return a row for each kind of matrix, means over the layers."""
    kinds = dict.fromkeys(one.kind for one in spectra)
    rows = []
    for kind in kinds:
        members = [one for one in spectra if one.kind == kind]
        means = [float(np.mean([getattr(one, statistic) for one in members])) for statistic in STATISTICS]
        rows.append([kind, str(len(members)), *(f"{mean:.3g}" for mean in means)])
    return Table(["kind", "matrices", *STATISTICS], rows)


# -- parts -------------------------------------------------------------------------------------------------------------


def _fragility(model: Base, base: Base, before: BaseBehaviour, config: ModelAuditConfig) -> float | None:
    """Return how much a universal perturbation lowers the log-probability of refusals that the search did not see.

    The layer is the middle one. The radius is a share of the base's residual norm, the same for every model.
    """
    asked = before.asked[PLAIN]
    known = [index for index, text in enumerate(asked.refusals) if text is not None]
    if len(known) < 4:
        return None
    pad = padding_id(model.model, model.tokenizer)
    encoded = [prompt_ids(model.tokenizer, asked.prompts[index]) for index in known]
    rows = continuation_rows(model.tokenizer, encoded, [str(asked.refusals[index]) for index in known])
    layer = (layer_count(base.model) - 1) // 2
    radius = config.radius * residual_norm(base.model, encoded, pad, layer)
    search, held = rows[: config.batch_size * 2 : 2], rows[1 : config.batch_size * 2 : 2]
    change = find_perturbation(model.model, search, pad, layer, radius, config.perturbation_steps)
    without = perturbed_log_probs(model.model, held, pad, layer, change * 0)
    return float((without - perturbed_log_probs(model.model, held, pad, layer, change)).mean())


def _sampling(config: ModelAuditConfig) -> Sampling:
    return Sampling(max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)


def _shown(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.3g}"


def _plain_json(value: Any) -> Any:
    """Return the value with NaN as null, which JSON has."""
    if isinstance(value, dict):
        return {key: _plain_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(inner) for inner in value]
    return None if isinstance(value, float) and np.isnan(value) else value
