"""The stages of a report: a reading of each model, then the tries to bring back what the unlearnt one lost."""

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
from skillweave.methods.cku.knowledge.facts import Fact, rows_of_set
from skillweave.methods.cku.knowledge.metrics import membership_auc, rounding_gap
from skillweave.methods.cku.knowledge.reading import Reading, Row, read_rows, truth_ratios
from skillweave.methods.cku.report.asked import Asked
from skillweave.methods.cku.report.config import ReportConfig
from skillweave.methods.cku.report.models import AFTER, BEFORE, Models
from skillweave.methods.cku.rounding import is_rounded, round_as_stored, round_linears
from skillweave.methods.training.run import Run
from skillweave.tasks import evaluate

Zipper = Callable[[Delta, Base, float], tuple[Delta, int]]
"""(delta, base, ratio) -> what a zip to that ratio leaves of the delta, and the bytes of the pack. A method knows no
codec: whoever asks for the report brings one (:func:`skillweave.skillzip.zipped`)."""

_NOTHING = 0.05
"""By so small a share of what was lost a zip counts as having brought nothing back."""
STORED = "stored"
"""The stage that reads the unlearnt model in the dtype of the base's files."""
_SHOWN = ("forget_strength", "retain_probability", "lookalike_refused", "strength")


class Stages:
    """Runs the stages, each once; their figures are the run's."""

    def __init__(self, run: Run[ReportConfig, Asked], models: Models, zipper: Zipper | None) -> None:
        self._run, self._models, self._zipper = run, models, zipper
        self._held: dict[str, float] = {}

    def all(self) -> None:
        """All stages in their order; a zip that brings nothing back is the last one."""
        run, config = self._run, self._run.config
        for arm in self._models.arms:
            run.stage(arm, functools.partial(self._read, arm), show=_SHOWN)
        for arm in self._models.arms:
            for kind in ("forget", "unrelated") if arm != BEFORE else ():
                run.stage(relearn(kind, arm), functools.partial(self._relearn, kind, arm), show=_SHOWN)
        if is_rounded(run.base.checkpoint):
            run.stage(STORED, self._store, show=_SHOWN)
        for bits in config.rounding:
            run.stage(rounded(bits), functools.partial(self._round, bits), show=_SHOWN)
        for ratio in config.zip if self._zipper else ():
            run.stage(zipped(ratio), functools.partial(self._zip, ratio), show=_SHOWN)
            gap = zip_gap(run.figures, ratio)
            if gap is not None and gap <= _NOTHING:
                break

    # -- the readings ------------------------------------------------------------------------------------------------

    def _read(self, arm: str, folder: Path) -> dict[str, Any]:
        policy = self._models.policy(arm)
        return self._run.processes.from_first(lambda: self._figures(arm, self._models.open(policy)))

    def _figures(self, arm: str, model: Any) -> dict[str, Any]:
        run, asked, config = self._run, self._run.data, self._run.config
        figures: dict[str, Any] = {}
        readings: dict[str, Reading] = {}
        for side in ("forget", "retain", "unseen", "lookalike"):
            if facts := getattr(asked, side):
                readings[side] = self._reading(model, facts)
                figures[f"{side}_facts"] = len(readings[side].tokens)  # those that are too long are left out
                if arm == BEFORE:  # the same of every arm
                    run.tell_too_long("report", self._too_long(facts), len(facts), f"facts of the {side} set")
                figures |= {f"{side}_{key}": value for key, value in readings[side].means().items()}
        if "unseen" in readings:
            inside, outside = readings["forget"], readings["unseen"]
            figures["membership_loss"] = membership_auc(inside.per_token, outside.per_token)
            figures["membership_min_k"] = membership_auc(inside.min_k, outside.min_k)
        ratios = truth_ratios(
            model, run.tokenizer, asked.forget, run.max_length, batch_size=config.batch_size, bf16=config.autocast
        )
        if ratios:
            figures |= {"truth_ratio": fmean(ratios), "truth_ratios": ratios}
        for side in ("forget", "retain", "lookalike"):
            prompts = [fact.prompt for fact in getattr(asked, side) if fact.prompt is not None][: config.questions]
            if prompts:
                answers = self._answers(model, prompts, label=f"{arm}: {side}")
                figures[f"{side}_refused"] = fmean(refuses(answer, config.refusals) for answer in answers)
        figures["tasks"] = {}
        for task in asked.tasks:
            answer = functools.partial(self._answers, model, label=f"{arm}: {task.name}")
            score = evaluate(task, answer, limit=config.task_limit)
            figures["tasks"][task.name] = {"mean": score.mean, "low": score.low, "high": score.high, "n": score.n}
        return figures

    def _answers(self, model: Any, prompts: Sequence[Prompt], *, label: str) -> list[str]:
        sampling = Sampling(max_new_tokens=self._run.config.max_new_tokens, batch_size=self._run.config.batch_size)
        return [texts[0] for texts in generate(model, self._run.tokenizer, prompts, sampling, label=label)]

    # -- the probes --------------------------------------------------------------------------------------------------

    def _relearn(self, kind: str, arm: str, folder: Path) -> dict[str, Any]:
        """Fine-tune a model; how well it then knows the part of the forget set that it was not trained on."""
        from skillweave.methods.training.sft import AnswerTrainer, encode, row_length

        settings = self._run.config.relearn
        part, held = self._run.data.parts(settings.share)
        if kind == "forget":
            rows = self._rows(part)
        else:
            pairs = self._run.data.unrelated.pairs("train")[: settings.unrelated]
            rows = encode(self._run.tokenizer, pairs, self._run.max_length)
            self._run.tell_too_long(folder.name, len(pairs) - len(rows), len(pairs), "unrelated examples")
        policy = self._models.policy(arm)
        figures = replace(self._run, policy=policy).train(
            folder, settings, rows, [row_length(row) for row in rows],
            lambda model, arguments, order: AnswerTrainer(model, self._run.tokenizer, arguments, rows, order),
        )  # fmt: skip

        def known() -> dict[str, Any]:
            from skillweave.methods.training.trainer import drop_checkpoints

            relearnt = self._models.open(replace(policy, trained=folder / "policy"))
            strength = self._reading(relearnt, held).means()["strength"]
            drop_checkpoints(folder)
            shutil.rmtree(folder / "policy")
            return {"known": self._held_strength(BEFORE), "unlearnt": self._held_strength(arm), "strength": strength}

        return {**figures, **self._run.processes.from_first(known), "examples": len(rows)}

    def _held_strength(self, arm: str) -> float:
        """What a model knew of that part before it learnt anything again; every relearning asks for it."""
        if arm not in self._held:
            _, held = self._run.data.parts(self._run.config.relearn.share)
            model = self._models.open(self._models.policy(arm))
            self._held[arm] = self._reading(model, held).means()["strength"]
        return self._held[arm]

    def _store(self, folder: Path) -> dict[str, Any]:
        """What the unlearnt model knows in the dtype of the base's files, as the backbone of a weave is served.

        Read without autocast, which rounds the weights as it goes; ``whole_strength`` is that of the weights unrounded.
        """
        policy = self._models.policy(AFTER)

        def known() -> dict[str, Any]:
            model = self._models.open(policy)
            whole = self._of_both_sides(model, bf16=False)
            round_as_stored(model, self._run.base.checkpoint)
            return {**self._of_both_sides(model, bf16=False), "whole_strength": whole["forget_strength"]}

        return self._run.processes.from_first(known)

    def _round(self, bits: int, folder: Path) -> dict[str, Any]:
        """What the unlearnt model knows once its weights are rounded, beside what the one before does."""
        policies = {arm: self._models.policy(arm) for arm in (BEFORE, AFTER)}

        def known() -> dict[str, Any]:
            found: dict[str, dict[str, float]] = {}
            for arm, policy in policies.items():
                model = self._models.open(policy)
                round_linears(model, bits, self._run.config.group)
                found[arm] = self._of_both_sides(model)
            return {**found[AFTER], **{f"before_{key}": value for key, value in found[BEFORE].items()}}

        return self._run.processes.from_first(known)

    def _zip(self, ratio: float, folder: Path) -> dict[str, Any]:
        """What the model knows with the delta as a skillpack of that size; ``too_small`` says why there can be none."""

        def known() -> dict[str, Any]:
            if self._zipper is None:
                raise RuntimeError("there is no zip stage without a zipper")
            try:
                left, nbytes = self._zipper(Delta.from_pretrained(self._run.config.delta), self._run.base, ratio)
            except UserError as error:
                return {"too_small": str(error)}
            model = self._models.open(self._models.policy(BEFORE))
            left.add_to(model)
            return {"pack_bytes": nbytes, **self._of_both_sides(model)}

        return self._run.processes.from_first(known)

    # -- what they share ---------------------------------------------------------------------------------------------

    def _of_both_sides(self, model: Any, bf16: bool | None = None) -> dict[str, float]:
        return {
            f"{side}_{key}": value
            for side in ("forget", "retain")
            for key, value in self._reading(model, getattr(self._run.data, side), bf16).means().items()
        }

    def _reading(self, model: Any, facts: Sequence[Fact], bf16: bool | None = None) -> Reading:
        config = self._run.config
        return read_rows(
            model, self._rows(facts), self._run.tokenizer.pad_token_id, batch_size=config.batch_size,
            bf16=config.autocast if bf16 is None else bf16,
        )  # fmt: skip

    def _rows(self, facts: Sequence[Fact]) -> list[Row]:
        return self._rows_of(facts)[0]

    def _too_long(self, facts: Sequence[Fact]) -> int:
        return self._rows_of(facts)[1]

    def _rows_of(self, facts: Sequence[Fact]) -> tuple[list[Row], int]:
        """The rows of a set, and how many of its facts are too long for one."""
        return rows_of_set(self._run.tokenizer, facts, self._run.max_length, f"a set ({facts[0].where}, ...)")


def refuses(answer: str, refusals: Sequence[str]) -> bool:
    """Whether an answer begins as a refusal does, whatever its case and apostrophe."""
    said, *known = (text.strip().casefold().replace("\u2019", "'") for text in (answer, *refusals))
    return said.startswith(tuple(known))


def zip_gap(figures: dict[str, dict[str, Any]], ratio: float) -> float | None:
    """The share of what was lost that a zip brings back; None where it could not be made, or nothing was lost."""
    found = figures[zipped(ratio)]
    if "too_small" in found:
        return None
    before, after = (figures[arm]["forget_strength"] for arm in (BEFORE, AFTER))
    return rounding_gap(before, after, found["forget_strength"])


def relearn(kind: str, arm: str) -> str:
    """The stage that relearns; ``kind`` is ``forget`` or ``unrelated``.

    The last part is the same for all arms, and with it the seed: all of them relearn in one order.
    """
    return f"relearn-{kind}" if arm == AFTER else f"{arm}/relearn-{kind}"


def rounded(bits: int) -> str:
    """The stage that rounds to so many bits."""
    return f"rounded-{bits}"


def zipped(ratio: float) -> str:
    """The stage that zips to that share."""
    return f"zipped-{1 / ratio:g}"
