"""The stages of a report: a reading of each model, then the probes that try to bring back what was unlearnt."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from skillweave.base import Base, Prompt, Sampling, generate
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.methods.cku.knowledge.facts import Fact, FactRow, rows_of_set
from skillweave.methods.cku.knowledge.metrics import membership_auc, rounding_gap
from skillweave.methods.cku.knowledge.reading import Reading, read_rows, truth_ratios
from skillweave.methods.cku.report.config import ReportConfig
from skillweave.methods.cku.report.inputs import AFTER, BEFORE, ReportData, ReportModels
from skillweave.methods.cku.rounding import is_rounded, round_as_stored, round_linears
from skillweave.methods.training.run import Run
from skillweave.methods.training.sft import AnswerTrainer, encode, row_length
from skillweave.methods.training.trainer import drop_checkpoints
from skillweave.tasks import evaluate

Zipper = Callable[[Delta, Base, float], tuple[Delta, int]]
"""(delta, base, ratio) -> the delta as a zip of that ratio restores it, and the bytes of the pack.

A method knows no codec, so the caller of the report passes one in (:func:`skillweave.skillzip.zipped`)."""

STORED = "stored"
"""The stage that reads the unlearnt model in the dtype of the base's files."""

_NEGLIGIBLE = 0.05
"""A zip that restores at most this share of what was lost counts as restoring nothing."""
_SHOWN = ("forget_strength", "retain_probability", "lookalike_refused", "strength")


class ReportStages:
    """Runs each stage once. The figures are stored in the run."""

    def __init__(self, run: Run[ReportConfig, ReportData], models: ReportModels, zipper: Zipper | None) -> None:
        self._run, self._models, self._zipper = run, models, zipper
        self._strengths: dict[str, float] = {}

    def run_all(self) -> None:
        """Run all stages in order. The zips end with the first one that restores nothing."""
        run, config = self._run, self._run.config
        for arm in self._models.arms:
            run.stage(arm, functools.partial(self._read, arm), show=_SHOWN)
        for arm in self._models.arms:
            for kind in ("forget", "unrelated") if arm != BEFORE else ():
                run.stage(relearn_stage(kind, arm), functools.partial(self._relearn, kind, arm), show=_SHOWN)
        if is_rounded(run.base.checkpoint):
            run.stage(STORED, self._store, show=_SHOWN)
        for bits in config.rounding:
            run.stage(rounding_stage(bits), functools.partial(self._round, bits), show=_SHOWN)
        for ratio in config.zip if self._zipper else ():
            run.stage(zip_stage(ratio), functools.partial(self._zip, ratio), show=_SHOWN)
            gap = zip_gap(run.figures, ratio)
            if gap is not None and gap <= _NEGLIGIBLE:
                break

    # -- the readings ------------------------------------------------------------------------------------------------

    def _read(self, arm: str, folder: Path) -> dict[str, Any]:
        policy = self._models.policy(arm)
        return self._run.processes.from_first(lambda: self._figures(arm, self._models.open(policy)))

    def _figures(self, arm: str, model: Any) -> dict[str, Any]:
        figures = self._knowledge(arm, model)
        figures |= self._refusals(arm, model)
        figures["tasks"] = self._task_scores(arm, model)
        return figures

    def _knowledge(self, arm: str, model: Any) -> dict[str, Any]:
        """How well a model knows each set, and whether the forget set can be told from unseen facts."""
        run, data, config = self._run, self._run.data, self._run.config
        figures: dict[str, Any] = {}
        readings: dict[str, Reading] = {}
        for side in ("forget", "retain", "unseen", "lookalike"):
            if facts := getattr(data, side):
                rows, too_long = self._rows(facts)
                readings[side] = self._read_rows(model, rows)
                figures[f"{side}_facts"] = len(rows)  # facts that are too long are left out
                if arm == BEFORE:  # the number is the same for every arm
                    run.tell_too_long("report", too_long, len(facts), f"facts of the {side} set")
                figures |= {f"{side}_{key}": value for key, value in readings[side].means().items()}
        if "unseen" in readings:
            members, strangers = readings["forget"], readings["unseen"]
            figures["membership_loss"] = membership_auc(members.per_token, strangers.per_token)
            figures["membership_min_k"] = membership_auc(members.min_k, strangers.min_k)
        ratios = truth_ratios(
            model, run.tokenizer, data.forget, run.max_length, batch_size=config.batch_size, bf16=config.autocast
        )
        if ratios:
            figures |= {"truth_ratio": fmean(ratios), "truth_ratios": ratios}
        return figures

    def _refusals(self, arm: str, model: Any) -> dict[str, float]:
        """The share of each set's prompts that a model refuses."""
        data, config = self._run.data, self._run.config
        figures = {}
        for side in ("forget", "retain", "lookalike"):
            prompts = [fact.prompt for fact in getattr(data, side) if fact.prompt is not None][: config.questions]
            if prompts:
                answers = self._answers(model, prompts, label=f"{arm}: {side}")
                figures[f"{side}_refused"] = fmean(refuses(answer, config.refusals) for answer in answers)
        return figures

    def _task_scores(self, arm: str, model: Any) -> dict[str, dict[str, float]]:
        scores = {}
        for task in self._run.data.tasks:
            answer = functools.partial(self._answers, model, label=f"{arm}: {task.name}")
            score = evaluate(task, answer, limit=self._run.config.task_limit)
            scores[task.name] = {"mean": score.mean, "low": score.low, "high": score.high, "n": score.n}
        return scores

    def _answers(self, model: Any, prompts: Sequence[Prompt], *, label: str) -> list[str]:
        sampling = Sampling(max_new_tokens=self._run.config.max_new_tokens, batch_size=self._run.config.batch_size)
        return [texts[0] for texts in generate(model, self._run.tokenizer, prompts, sampling, label=label)]

    # -- the probes --------------------------------------------------------------------------------------------------

    def _relearn(self, kind: str, arm: str, folder: Path) -> dict[str, Any]:
        """Fine-tune a model, and return how well it then knows the part of the forget set that was not trained on."""
        run, settings = self._run, self._run.config.relearn
        trained_part, read_part = run.data.split_forget(settings.share)
        if kind == "forget":
            rows, _ = self._rows(trained_part)
        else:
            pairs = run.data.unrelated.pairs("train")[: settings.unrelated]
            rows = encode(run.tokenizer, pairs, run.max_length)
            run.tell_too_long(folder.name, len(pairs) - len(rows), len(pairs), "unrelated examples")
        policy = self._models.policy(arm)
        figures = replace(run, policy=policy).train(
            folder,
            settings,
            rows,
            [row_length(row) for row in rows],
            lambda model, arguments, order: AnswerTrainer(model, run.tokenizer, arguments, rows, order),
        )

        def read() -> dict[str, Any]:
            relearnt = self._models.open(replace(policy, trained=folder / "policy"))
            strength = self._reading(relearnt, read_part).means()["strength"]
            drop_checkpoints(folder)
            shutil.rmtree(folder / "policy")
            return {"known": self._strength(BEFORE), "unlearnt": self._strength(arm), "strength": strength}

        return {**figures, **run.processes.from_first(read), "examples": len(rows)}

    def _strength(self, arm: str) -> float:
        """The extraction strength of that part in a model before relearning; computed once per arm."""
        if arm not in self._strengths:
            _, read_part = self._run.data.split_forget(self._run.config.relearn.share)
            model = self._models.open(self._models.policy(arm))
            self._strengths[arm] = self._reading(model, read_part).means()["strength"]
        return self._strengths[arm]

    def _store(self, folder: Path) -> dict[str, Any]:
        """Return what the unlearnt model knows in the dtype of the base's files, as the backbone of a weave is served.

        It is read without autocast, which would round the weights itself. ``whole_strength`` is the forget strength of
        the unrounded weights.
        """
        policy = self._models.policy(AFTER)

        def read() -> dict[str, Any]:
            model = self._models.open(policy)
            unrounded = self._both_sets(model, bf16=False)
            round_as_stored(model, self._run.base.checkpoint)
            return {**self._both_sets(model, bf16=False), "whole_strength": unrounded["forget_strength"]}

        return self._run.processes.from_first(read)

    def _round(self, bits: int, folder: Path) -> dict[str, Any]:
        """Return what the unlearnt model and the one before know when their weights are rounded."""
        policies = {arm: self._models.policy(arm) for arm in (BEFORE, AFTER)}

        def read() -> dict[str, Any]:
            figures: dict[str, dict[str, float]] = {}
            for arm, policy in policies.items():
                model = self._models.open(policy)
                round_linears(model, bits, self._run.config.group)
                figures[arm] = self._both_sets(model)
            return {**figures[AFTER], **{f"before_{key}": value for key, value in figures[BEFORE].items()}}

        return self._run.processes.from_first(read)

    def _zip(self, ratio: float, folder: Path) -> dict[str, Any]:
        """Return what the model knows with the delta as a skillpack of that size; ``too_small``: why there is none."""

        def read() -> dict[str, Any]:
            if self._zipper is None:
                raise RuntimeError("a zip stage needs a zipper")
            delta = self._models.delta(self._run.config.delta)
            try:
                restored, nbytes = self._zipper(delta, self._run.base, ratio)
            except UserError as error:
                return {"too_small": str(error)}
            model = self._models.open(self._models.policy(BEFORE))
            restored.add_to(model)
            return {"pack_bytes": nbytes, **self._both_sets(model)}

        return self._run.processes.from_first(read)

    # -- shared by the stages ----------------------------------------------------------------------------------------

    def _both_sets(self, model: Any, bf16: bool | None = None) -> dict[str, float]:
        """The mean figures of a model on the forget set and on the retain set."""
        return {
            f"{side}_{key}": value
            for side in ("forget", "retain")
            for key, value in self._reading(model, getattr(self._run.data, side), bf16).means().items()
        }

    def _reading(self, model: Any, facts: Sequence[Fact], bf16: bool | None = None) -> Reading:
        return self._read_rows(model, self._rows(facts)[0], bf16)

    def _read_rows(self, model: Any, rows: Sequence[FactRow], bf16: bool | None = None) -> Reading:
        """How well a model knows the rows. ``bf16``: whether to use autocast; None: as the settings say."""
        config = self._run.config
        return read_rows(
            model,
            rows,
            self._run.tokenizer.pad_token_id,
            batch_size=config.batch_size,
            bf16=config.autocast if bf16 is None else bf16,
        )

    def _rows(self, facts: Sequence[Fact]) -> tuple[list[FactRow], int]:
        """The rows of a set, and the number of its facts that are too long."""
        return rows_of_set(self._run.tokenizer, facts, self._run.max_length, f"a set ({facts[0].where}, ...)")


def refuses(answer: str, refusals: Sequence[str]) -> bool:
    """Whether an answer begins with one of the refusals, ignoring case and the kind of apostrophe."""
    start, *known = (text.strip().casefold().replace("\u2019", "'") for text in (answer, *refusals))
    return start.startswith(tuple(known))


def zip_gap(figures: dict[str, dict[str, Any]], ratio: float) -> float | None:
    """Return the share of what was lost that a zip restores; None if there is no such zip, or if nothing was lost."""
    stage = figures[zip_stage(ratio)]
    if "too_small" in stage:
        return None
    before, after = (figures[arm]["forget_strength"] for arm in (BEFORE, AFTER))
    return rounding_gap(before, after, stage["forget_strength"])


def relearn_stage(kind: str, arm: str) -> str:
    """The name of a relearning stage; ``kind`` is ``forget`` or ``unrelated``.

    The last part of the name, which the seed depends on, is the same for all arms: all relearn in the same order.
    """
    return f"relearn-{kind}" if arm == AFTER else f"{arm}/relearn-{kind}"


def rounding_stage(bits: int) -> str:
    """The name of the stage that rounds to so many bits."""
    return f"rounded-{bits}"


def zip_stage(ratio: float) -> str:
    """The name of the stage that zips to that ratio."""
    return f"zipped-{1 / ratio:g}"
