"""The report of an unlearning: what is forgotten, what is kept, and what three probes bring back.

The stages of the run are ``before``, ``after`` and ``reference`` (a reading of each model), ``relearn-forget`` and
``relearn-unrelated`` (each of the unlearnt model and, where there is one, of the reference), ``rounded-8`` and
``rounded-4``. A killed report goes on with the same command.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from skillweave.artefact import digest
from skillweave.base import Base, Prompt, Sampling, generate, resolve
from skillweave.delta import Delta, is_delta, write_tuned
from skillweave.methods.cku.facts import Fact, check_apart, fact_rows, read_facts
from skillweave.methods.cku.judge import (
    forget_quality,
    membership_auc,
    relearning_gap,
    relearning_robustness,
    robustness,
    rounding_gap,
    rounding_robustness,
)
from skillweave.methods.cku.report_config import ReportConfig
from skillweave.methods.training.run import Run
from skillweave.report import machine, versions
from skillweave.tasks import Task, evaluate, load_task

if TYPE_CHECKING:
    from skillweave.methods.cku.measure import Reading, Row
    from skillweave.methods.training.policy import Policy

_SHOWN = ("forget_strength", "retain_probability", "lookalike_refused", "strength")


@dataclass(frozen=True)
class _Asked:
    """All that the models are asked."""

    name: str
    forget: list[Fact]
    retain: list[Fact]
    unseen: list[Fact]
    lookalike: list[Fact]
    tasks: list[Task]
    unrelated: Task

    @property
    def key(self) -> str:
        facts = (self.forget, self.retain, self.unseen, self.lookalike)
        return digest(
            [
                [
                    [[fact.id, fact.prompt, fact.answer, fact.paraphrased, fact.wrong] for fact in side]
                    for side in facts
                ],
                [task.key for task in (*self.tasks, self.unrelated)],
            ]
        )


def report(base: Base, config: ReportConfig, folder: Path, *, command: str) -> dict[str, Any]:
    """Judge ``config.delta`` on ``base``; the report as ``report.json`` holds it. ``folder`` is the work folder.

    Called again on the same folder it goes on where it was cut off. Raises :class:`UserError`.
    """
    from skillweave.methods.training.trainer import quiet

    delta = Delta.from_pretrained(config.delta)
    delta.check_base(base.fingerprint, base.ref)
    asked = _Asked(
        name=Path(config.forget[0]).stem, forget=read_facts(config.forget), retain=read_facts(config.retain),
        unseen=read_facts(config.unseen or []), lookalike=read_facts(config.lookalike or []),
        tasks=[load_task(spec) for spec in config.tasks], unrelated=load_task(config.unrelated_task),
    )  # fmt: skip
    check_apart(asked.forget, asked.retain)
    run = Run.begin("cku report", base, config, asked, folder)
    models = folder / "models"
    with quiet():
        judging = _Judging(run, {"before": run.policy, "after": _written(run, delta, models / "after")})
        if config.reference is not None:
            judging.policies["reference"] = _reference(run, config.reference, models / "reference")
        judging.all_stages()
    if run.processes.first:
        shutil.rmtree(models, ignore_errors=True)
    seconds = sum(stage["seconds"] for stage in run.figures.values())
    return {
        "base": {"ref": base.ref, "fingerprint": base.fingerprint},
        "delta": {"folder": str(config.delta), "provenance": dict(delta.provenance)},
        **judging.judged(),
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "seconds": seconds,
    }


def _written(run: Run[ReportConfig, _Asked], delta: Delta, folder: Path) -> Policy:
    """The model that a delta makes of the base, in float32: in a narrower dtype part of what changed would be lost."""
    if run.processes.from_first(lambda: not folder.is_dir()) and run.processes.first:
        write_tuned(run.base.path, delta, folder, dtype="float32")
    run.processes.wait()
    return replace(run.policy, base=folder)


def _reference(run: Run[ReportConfig, _Asked], ref: str, folder: Path) -> Policy:
    if is_delta(Path(ref)):
        delta = Delta.from_pretrained(ref)
        delta.check_base(run.base.fingerprint, run.base.ref)
        return _written(run, delta, folder)
    return replace(run.policy, base=resolve(ref))


@dataclass
class _Judging:
    """The run of the report, and the models by arm."""

    run: Run[ReportConfig, _Asked]
    policies: dict[str, Policy]

    def all_stages(self) -> None:
        """Read every model, then try to bring back what the unlearnt one lost."""
        run, config = self.run, self.run.config
        for arm in self.policies:
            run.stage(arm, functools.partial(self._read, arm), show=_SHOWN)
        for arm in self._unlearnt():
            for kind in ("forget", "unrelated"):
                run.stage(_relearn(kind, arm), functools.partial(self._relearn, kind, arm), show=_SHOWN)
        for bits in config.rounding:
            run.stage(f"rounded-{bits}", functools.partial(self._rounded, bits), show=_SHOWN)

    def _unlearnt(self) -> list[str]:
        return [arm for arm in self.policies if arm != "before"]

    # -- the readings ------------------------------------------------------------------------------------------------

    def _read(self, arm: str, folder: Path) -> dict[str, Any]:
        return self.run.processes.from_first(lambda: self._read_first(arm))

    def _read_first(self, arm: str) -> dict[str, Any]:
        from skillweave.methods.cku.measure import truth_ratios

        run, asked, config = self.run, self.run.task, self.run.config
        model = self._open(self.policies[arm])
        figures: dict[str, Any] = {}
        readings: dict[str, Reading] = {}
        for side in ("forget", "retain", "unseen", "lookalike"):
            facts = getattr(asked, side)
            if facts:
                readings[side] = self._reading(model, self._rows(facts))
                figures |= {f"{side}_{key}": value for key, value in readings[side].means().items()}
        if "unseen" in readings:
            inside, outside = readings["forget"], readings["unseen"]
            figures["membership_loss"] = membership_auc(inside.per_token, outside.per_token)
            figures["membership_min_k"] = membership_auc(inside.min_k, outside.min_k)
        ratios = truth_ratios(
            model, run.tokenizer, asked.forget, run.max_length, batch_size=config.batch_size, bf16=config.bf16
        )
        if ratios:
            figures |= {"truth_ratio": fmean(ratios), "truth_ratios": ratios}
        for side in ("forget", "retain", "lookalike"):
            prompts = [fact.prompt for fact in getattr(asked, side) if fact.prompt is not None][: config.questions]
            if prompts:
                figures[f"{side}_refused"] = fmean(
                    self._refuses(answer) for answer in self._answers(model, prompts, label=f"{arm}: {side}")
                )
        figures["tasks"] = {}
        for task in asked.tasks:
            answer = functools.partial(self._answers, model, label=f"{arm}: {task.name}")
            score = evaluate(task, answer, limit=config.task_limit)
            figures["tasks"][task.name] = {"mean": score.mean, "low": score.low, "high": score.high, "n": score.n}
        return figures

    def _refuses(self, answer: str) -> bool:
        said = answer.strip().casefold().replace("\u2019", "'")
        return any(said.startswith(refusal.casefold()) for refusal in self.run.config.refusals)

    def _answers(self, model: Any, prompts: Sequence[Prompt], *, label: str) -> list[str]:
        sampling = Sampling(max_new_tokens=self.run.config.max_new_tokens, batch_size=self.run.config.batch_size)
        return [texts[0] for texts in generate(model, self.run.tokenizer, prompts, sampling, label=label)]

    # -- the probes --------------------------------------------------------------------------------------------------

    def _relearn(self, kind: str, arm: str, folder: Path) -> dict[str, Any]:
        """Fine-tune a model; how well it then knows the part of the forget set that it was not trained on."""
        from skillweave.methods.training.sft import AnswerTrainer, encode, row_length

        run, settings = self.run, self.run.config.relearn
        part, held = self._parts()
        if kind == "forget":
            rows = self._rows(part)
        else:
            rows = encode(run.tokenizer, run.task.unrelated.pairs("train")[: settings.unrelated], run.max_length)
        untouched = run.policy
        run.policy = self.policies[arm]
        figures = run.train(
            folder, settings, rows, [row_length(row) for row in rows],
            lambda model, arguments, order: AnswerTrainer(model, run.tokenizer, arguments, rows, order),
        )  # fmt: skip
        run.policy = untouched
        known = run.processes.from_first(
            lambda: self._relearnt(replace(self.policies[arm], trained=folder / "policy"), held, arm)
        )
        return {**figures, **known, "examples": len(rows)}

    def _relearnt(self, policy: Policy, held: list[Fact], arm: str) -> dict[str, Any]:
        from skillweave.methods.training.trainer import drop_checkpoints

        rows = self._rows(held)
        before = self._reading(self._open(self.policies[arm]), rows).means()
        after = self._reading(self._open(policy), rows).means()
        known = self._reading(self._open(self.policies["before"]), rows).means()
        if policy.trained is not None:
            drop_checkpoints(policy.trained.parent)
            shutil.rmtree(policy.trained)
        return {"known": known["strength"], "unlearnt": before["strength"], **after}

    def _parts(self) -> tuple[list[Fact], list[Fact]]:
        """The forget set in two: what is trained on again, and what is asked."""
        facts = sorted(self.run.task.forget, key=lambda fact: fact.id)
        cut = min(len(facts) - 1, max(1, round(self.run.config.relearn.share * len(facts))))
        return facts[:cut], facts[cut:]

    def _rounded(self, bits: int, folder: Path) -> dict[str, Any]:
        """What the unlearnt model knows once its weights are rounded, beside what the one before does."""
        from skillweave.methods.cku.rounding import round_linears

        def work() -> dict[str, Any]:
            found: dict[str, float] = {}
            for arm in ("before", "after"):
                model = self._open(self.policies[arm])
                round_linears(model, bits, self.run.config.group)
                for side in ("forget", "retain"):
                    means = self._reading(model, self._rows(getattr(self.run.task, side))).means()
                    prefix = f"{arm}_" if arm == "before" else ""
                    found |= {f"{prefix}{side}_{key}": value for key, value in means.items()}
            return found

        return self.run.processes.from_first(work)

    # -- what is made of it ------------------------------------------------------------------------------------------

    def judged(self) -> dict[str, Any]:
        """The figures of the report; None where what it takes was not given."""
        stages, config = self.run.figures, self.run.config
        arms = {arm: stages[arm] for arm in self.policies}
        before, after, reference = arms["before"], arms["after"], arms.get("reference")
        floor = (reference or {}).get("forget_strength", before.get("unseen_strength", 0.0))
        lost = before["forget_strength"] - floor
        relearning = {}
        for kind in ("forget", "unrelated"):
            found = stages[_relearn(kind, "after")]
            relearning[kind] = {
                **{key: found[key] for key in ("known", "unlearnt", "strength", "examples", "steps")},
                "gap": relearning_gap(found["known"], found["unlearnt"], found["strength"]),
            }
            if reference is not None:
                other = stages[_relearn(kind, "reference")]
                relearning[kind]["reference"] = other["strength"]
                relearning[kind]["robustness"] = relearning_robustness(
                    retain_gain=other["strength"] - other["unlearnt"],
                    unlearned_gain=found["strength"] - found["unlearnt"],
                )
        rounding = {}
        for bits in config.rounding:
            found = stages[f"rounded-{bits}"]
            rounding[str(bits)] = {
                **found,
                "gap": rounding_gap(before["forget_strength"], after["forget_strength"], found["forget_strength"]),
                "robustness": rounding_robustness(after["forget_strength"], found["forget_strength"]),
            }
        both = None
        if reference is not None and rounding:
            worst = min(entry["robustness"] for entry in rounding.values())
            both = robustness(relearning["forget"]["robustness"], worst)
        quality = None
        if reference is not None and "truth_ratios" in after and "truth_ratios" in reference:
            quality = forget_quality(after["truth_ratios"], reference["truth_ratios"])
        return {
            "arms": arms,
            "forgotten": (before["forget_strength"] - after["forget_strength"]) / lost if lost > 0 else None,
            "kept": after["retain_probability"] / before["retain_probability"],
            "forget_quality": quality,
            "relearning": relearning,
            "rounding": rounding,
            "robustness": both,
        }

    # -- what they share ---------------------------------------------------------------------------------------------

    def _open(self, policy: Policy) -> Any:
        """A model to be read and asked, in float32 or, with ``bf16``, under autocast."""
        from skillweave.methods.training.head import install_scoring_head

        model = policy.open_to_sample(self.run.config.model_copy(update={"bf16": False}))
        install_scoring_head(model)
        return model

    def _reading(self, model: Any, rows: Sequence[Row]) -> Reading:
        from skillweave.methods.cku.measure import read_rows

        config = self.run.config
        return read_rows(model, rows, self.run.tokenizer.pad_token_id, batch_size=config.batch_size, bf16=config.bf16)

    def _rows(self, facts: Sequence[Fact]) -> list[Row]:
        return fact_rows(self.run.tokenizer, facts, self.run.max_length)[0]


def _relearn(kind: str, arm: str) -> str:
    return f"relearn-{kind}" if arm == "after" else f"relearn-{kind}-{arm}"
