"""Find the smallest pack that keeps a share of what a fine-tune gained: the search of ``zip --target-retention``.

The gain is the fine-tune's score less the base's, on prompts that neither the calibration nor a refinement reads. A
pack keeps the share ``(pack - base) / (fine-tune - base)`` of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skillweave.artefact import write_json
from skillweave.base import Answer, Base, Prompt, Sampling, open_base
from skillweave.delta import Delta
from skillweave.errors import TooSmall, UserError
from skillweave.files.lock import claim
from skillweave.files.read import read_json
from skillweave.files.recover import drop
from skillweave.pack import Skillpack
from skillweave.pipeline.evaluate import answers, read_answers, read_score, score_once
from skillweave.pipeline.step import base_key, remember_base, run_step
from skillweave.progress import console
from skillweave.report import Table
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.skillzip.config import FIXED_SIZE
from skillweave.skillzip.refine.work import delta_digest
from skillweave.tasks import Task
from skillweave.units import human_bytes
from skillweave.weave import Weave

CLOSENESS = 1.25
"""The search ends when the ratio that it found is at most this factor above one that loses too much."""
_STRIDE = 4.0
"""The factor between two ratios, until one keeps enough and one does not."""
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Trial:
    """One ratio that was tried. If the codec cannot write so small a pack, it has no score."""

    ratio: float
    bytes: int | None = None
    """the bytes of the pack"""
    score: float | None = None
    """the pack's mean score, in [0, 1], with its 95% interval ``low`` to ``high``"""
    low: float | None = None
    high: float | None = None
    retained: float | None = None
    """the share of the gain that the pack keeps, with its 95% interval"""
    retained_low: float | None = None
    retained_high: float | None = None
    keeps: bool = False
    """whether ``retained`` reaches the target"""


@dataclass(frozen=True)
class RetentionSearch:
    """A finished search: the smallest pack that keeps enough, and all that were tried, in their order."""

    target: float
    base: dict[str, Any]
    """the base's score: mean, low, high, n"""
    specialist: dict[str, Any]
    """the fine-tune's score, likewise"""
    trials: list[Trial]
    chosen: Trial

    @property
    def grain(self) -> float:
        """The share of the gain that one more right answer is worth, if an answer is either right or wrong."""
        return 1 / (self.base["n"] * (self.specialist["mean"] - self.base["mean"]))

    def table(self) -> Table:
        """Return the table of the trials, the largest pack first."""
        lines = []
        for trial in sorted(self.trials, key=lambda trial: -trial.ratio):
            if trial.bytes is None or trial.score is None or trial.low is None or trial.high is None:
                lines.append([ratio_text(trial.ratio), "too small for this codec", "-", "-", "-"])
                continue
            score = f"{trial.score:.1%} ({trial.low:.1%} to {trial.high:.1%})"
            kept = f"{trial.retained:.1%} ({trial.retained_low:.1%} to {trial.retained_high:.1%})"
            verdict = "chosen" if trial == self.chosen else "enough" if trial.keeps else "too little"
            lines.append([ratio_text(trial.ratio), human_bytes(trial.bytes), score, kept, verdict])
        return Table(["of the delta", "bytes", "score (95%)", "of the gain (95%)", ""], lines)

    def notes(self) -> list[str]:
        """Return sentences about how much the figures say."""
        n, grain = self.base["n"], self.grain
        said = [
            f"Scores on {n} test prompts: base {_score(self.base)}, fine-tune {_score(self.specialist)}. One answer "
            f"more or less is {grain:.2%} of the gain.",
            "These prompts chose the size, so the figure of the chosen pack is slightly too good: score it on others.",
        ]
        if grain > 1 - self.target:
            said.append(
                f"With {n} prompts, {self.target:g} means no answer fewer than the fine-tune has: the next lower "
                f"figure is {1 - grain:.1%}. More test prompts make the search finer."
            )
        if self.chosen.retained_low is not None and self.chosen.retained_low < self.target:
            said.append(
                f"The interval of the chosen pack reaches below the target ({self.chosen.retained_low:.1%}): more test "
                "prompts would narrow it."
            )
        return said


def zip_to_target(
    delta: Delta,
    base: Base,
    task: Task,
    config: ZipConfig,
    target: float,
    folder: Path,
    *,
    name: str,
    method: str = "unknown",
    data: dict[str, Any] | None = None,
    limit: int | None = None,
    sampling: Sampling | None = None,
) -> tuple[Skillpack, RetentionSearch]:
    """Return the smallest pack of ``delta`` that keeps the share ``target`` of its gain, and how it was found.

    * The scores are those of ``task`` on its test split, or on the first ``limit`` prompts of it, without sampling
      unless ``sampling`` says so. Calibration and refinement read the other splits.
    * The search starts at ``config.ratio`` and is a bisection over the logarithm of the ratio
      (:func:`smallest_ratio`). It takes for granted that a larger pack keeps more.
    * ``folder`` keeps the scores, and each pack that was tried. Another call resumes with what is there, also for
      another target.

    Raises :class:`UserError` if the settings allow no search, if the fine-tune gained nothing, and if no pack keeps
    enough.
    """
    check_settings(config, target)
    with claim(folder):
        refine = config.refine
        examples = None if refine is None else task.examples(("calibration", "train"), refine.prompts)
        work = _Work(delta, base, task, examples, config, folder, name, method, data, limit, sampling or Sampling())
        _check_gain(work.of_base.figures, work.of_specialist.figures)
        trials: list[Trial] = []

        def keeps(ratio: float) -> bool:
            trials.append(work.tried(ratio, target))
            return trials[-1].keeps

        found = smallest_ratio(keeps, start=config.ratio if config.ratio is not None else 1 / 32)
        if found is None:
            raise UserError(_out_of_reach(trials[-1], target))
        chosen = next(trial for trial in trials if trial.ratio == found)
        search = RetentionSearch(target, work.of_base.figures, work.of_specialist.figures, trials, chosen)
        write_json(folder / "search.json", asdict(search))
        return work.pack(found), search


@dataclass(frozen=True)
class _Score:
    """The score of a model: mean, low, high, n; and that of each prompt, (n,)."""

    figures: dict[str, Any]
    of_prompts: np.ndarray


@dataclass(frozen=True)
class _Work:
    """What a search makes in its folder: scores, and the packs that it tries. What is there is not made again."""

    delta: Delta
    base: Base
    task: Task
    examples: list[tuple[Prompt, Answer | None]] | None
    """what a refinement reads"""
    config: ZipConfig
    folder: Path
    name: str
    method: str
    data: dict[str, Any] | None
    limit: int | None
    sampling: Sampling

    @functools.cached_property
    def of_base(self) -> _Score:
        """The score of the base."""
        return self._score("base", "score the base", {}, lambda: (Weave.of(self.base), None))

    @functools.cached_property
    def of_specialist(self) -> _Score:
        """The score of base + delta, in float32 unless the base is in memory only."""

        def opened() -> tuple[Weave, None]:
            if self.base.in_memory:
                return Weave.of(self.delta.apply(self.base)), None
            fresh = open_base(self.base.path, dtype="float32", device=self.base.model.device)
            return Weave.of(self.delta.apply(fresh, in_place=True)), None

        return self._score("fine-tune", "score the fine-tune", {}, opened)

    def tried(self, ratio: float, target: float) -> Trial:
        """Return what the pack of a ratio keeps, and say it."""
        settings = self.config.model_copy(update={"ratio": ratio})
        card = {"name": self.name, "method": self.method, "data": self.data}
        scores = [self.of_base.figures, self.of_specialist.figures]
        inputs = {**self._common, "zip": settings.model_dump(mode="json"), "card": {**card, "scores": scores}}
        place = self._place(ratio)
        run_step(f"zip to {ratio_text(ratio)}", place / "zip", inputs, lambda step: self._zip(step, settings))
        if (place / "zip" / "refused.json").exists():
            least = read_json(place / "zip" / "refused.json")["least"]
            console.print(f"  too small: a pack of this delta takes at least {human_bytes(least)}")
            return Trial(ratio)
        pack = self.pack(ratio)
        score = self._score(
            f"{place.name}/score",
            f"score the pack of {ratio_text(ratio)}",
            {"pack": inputs},
            lambda: (Weave.of(self.base, {self.name: pack}), self.name),
        )
        kept, low, high = retention(self.of_base.of_prompts, self.of_specialist.of_prompts, score.of_prompts)
        console.print(f"  {human_bytes(pack.nbytes)} keep {kept:.1%} of the gain ({low:.1%} to {high:.1%})")
        enough = kept >= target - 1e-9  # a mean of equal figures must not fail by a rounding error
        found = score.figures
        return Trial(ratio, pack.nbytes, found["mean"], found["low"], found["high"], kept, low, high, enough)

    def pack(self, ratio: float) -> Skillpack:
        """Return the pack of a ratio that was tried."""
        return Skillpack.from_pretrained(self._place(ratio) / "zip" / "pack")

    @functools.cached_property
    def _common(self) -> dict[str, Any]:
        """The inputs of every step."""
        config = self.base.model.config
        key = base_key(self.folder, self.base.fingerprint, config)
        remember_base(self.folder, self.base.fingerprint, key, config)
        return {"delta": delta_digest(self.delta), "base": [key, str(self.base.model.dtype)], "task": self.task.key}

    def _place(self, ratio: float) -> Path:
        return self.folder / f"1-{1 / ratio:.6g}"

    def _score(
        self, step: str, title: str, inputs: dict[str, Any], open_weave: Callable[[], tuple[Weave, str | None]]
    ) -> _Score:
        """Return the score of a pack in a weave, or of its base."""

        def work(place: Path) -> None:
            weave, pack = open_weave()
            found = answers(weave, pack, self.task, None, self.sampling)
            score_once(place, self.task, found, limit=self.limit)

        how = {"limit": self.limit, "max_new_tokens": self.sampling.max_new_tokens}
        run_step(title, self.folder / step, {**self._common, "score": how, **inputs}, work)
        lines = read_answers(self.folder / step)
        return _Score(read_score(self.folder / step), np.array([line["score"] for line in lines]))

    def _zip(self, place: Path, settings: ZipConfig) -> None:
        """Write the pack below ``place``, or the least bytes that the codec can write if it cannot be so small."""
        try:
            pack = zip_delta(
                self.delta,
                self.base,
                self.task.pairs("calibration") if settings.needs_calibration else None,
                settings,
                name=self.name,
                method=self.method,
                data=self.data,
                scores={"base": self.of_base.figures, "specialist": self.of_specialist.figures},
                refine_on=self.examples,
                work=None if settings.refine is None else place / "refine",
            )
        except TooSmall as error:
            write_json(place / "refused.json", {"least": error.least})
            return
        pack.save_pretrained(place / "pack")
        drop(place / "refine")


def check_settings(config: ZipConfig, target: float) -> None:
    """Raise :class:`UserError` if there is nothing to search with these settings."""
    if not 0 < target <= 1:
        raise UserError(f"the target retention is {target:g}: give a share of the gain, more than 0 and at most 1")
    if config.budget is not None:
        raise UserError("a target retention chooses the size of the pack: leave out budget")
    if config.codec in FIXED_SIZE:
        raise UserError(
            f"the codec '{config.codec}' writes packs of one size, so there is no size to search: leave out the target "
            "retention, or take a codec that follows a limit, such as skillzip"
        )


def smallest_ratio(keeps: Callable[[float], bool], *, start: float) -> float | None:
    """Return the smallest ratio found that ``keeps`` enough, or None if not even the ratio 1 does.

    From ``start``, the ratio is divided or multiplied by 4 until one ratio keeps enough and a smaller one does not;
    these two are then brought together by bisection of the logarithm, to a factor of :data:`CLOSENESS`. ``keeps`` is
    never asked twice about one ratio.
    """
    good = bad = None
    ratio = start
    while good is None or bad is None:
        if keeps(ratio):
            good, ratio = ratio, ratio / _STRIDE
        elif ratio >= 1:
            return None
        else:
            bad, ratio = ratio, min(1.0, ratio * _STRIDE)
    while good / bad > CLOSENESS:
        middle = math.sqrt(good * bad)
        good, bad = (middle, bad) if keeps(middle) else (good, middle)
    return good


def retention(
    base: Sequence[float] | np.ndarray, specialist: Sequence[float] | np.ndarray, pack: Sequence[float] | np.ndarray
) -> tuple[float, float, float]:
    """Return the share of the gain that a pack keeps, with its 95% interval, from scores of the same prompts, (n,).

    The interval is the percentile bootstrap over prompts; all three models are scored on each resample. Resamples on
    which the fine-tune gained nothing have no share and do not count.
    """
    scores = np.array([base, specialist, pack], dtype=np.float64)
    picks = np.random.default_rng(0).integers(scores.shape[1], size=(_RESAMPLES, scores.shape[1]))
    means = scores[:, picks].mean(axis=2)
    gains = means[1] - means[0]
    shares = (means[2] - means[0])[gains > 0] / gains[gains > 0]
    before, best, now = scores.mean(axis=1)
    low, high = np.quantile(shares, (0.025, 0.975))
    return float((now - before) / (best - before)), float(low), float(high)


def ratio_text(ratio: float) -> str:
    """Return a ratio for a person: ``1/64``."""
    return f"1/{1 / ratio:.4g}"


def _score(score: dict[str, Any]) -> str:
    return f"{score['mean']:.1%} ({score['low']:.1%} to {score['high']:.1%})"


def _check_gain(base: dict[str, Any], specialist: dict[str, Any]) -> None:
    """Raise :class:`UserError` if the fine-tune gained nothing; say so if the gain may be chance."""
    told = f"base {_score(base)}, fine-tune {_score(specialist)}, on {base['n']} test prompts"
    if specialist["mean"] <= base["mean"]:
        raise UserError(
            f"the fine-tune gained nothing on this task, so no share of it can be kept ({told}): name the task that it "
            "was made for, raise max_new_tokens if answers are cut off, or give a ratio or budget"
        )
    if specialist["low"] <= base["high"]:
        console.print(
            f"  The intervals of base and fine-tune overlap ({told}): the gain may be chance, and so may every share "
            "of it. More test prompts would tell.",
            soft_wrap=True,
        )


def _out_of_reach(last: Trial, target: float) -> str:
    kept = "it is refused" if last.retained is None else f"it keeps {last.retained:.1%}"
    return (
        f"no pack keeps {target:.1%} of the gain: {kept} at the ratio {ratio_text(last.ratio)}, which is the largest. "
        "Lower the target retention, set bits=8, or refine the pack"
    )
