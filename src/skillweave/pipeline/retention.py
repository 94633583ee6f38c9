"""Find the smallest pack that keeps a share of what a fine-tune gained: the search of ``zip --target-retention``.

The gain is the fine-tune's score less the base's, on prompts that neither the calibration nor a refinement reads. A
pack keeps the share ``(pack - base) / (fine-tune - base)`` of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skillweave.artefact import write_json
from skillweave.base import Base, Sampling, open_base
from skillweave.delta import Delta
from skillweave.errors import TooSmall, UserError
from skillweave.files.lock import claim
from skillweave.files.read import read_json
from skillweave.files.recover import drop
from skillweave.pack import Skillpack
from skillweave.pipeline.evaluate import answers, read_answers, read_score, score_once
from skillweave.pipeline.step import run_step
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
    sampling = sampling or Sampling()
    common = {"delta": delta_digest(delta), "base": [base.fingerprint, str(base.model.dtype)], "task": task.key}
    scored = {**common, "score": {"limit": limit, "max_new_tokens": sampling.max_new_tokens}}
    examples = task.examples(("calibration", "train"), config.refine.prompts) if config.refine is not None else None

    def score(
        step: str, title: str, inputs: dict[str, Any], open_weave: Callable[[], tuple[Weave, str | None]]
    ) -> tuple[dict[str, Any], np.ndarray]:
        def work(place: Path) -> None:
            weave, pack = open_weave()
            score_once(place, task, answers(weave, pack, task, None, sampling), limit=limit)

        run_step(title, folder / step, inputs, work)
        return read_score(folder / step), np.array([line["score"] for line in read_answers(folder / step)])

    def specialist() -> tuple[Weave, None]:
        if base.in_memory:
            return Weave.of(delta.apply(base)), None
        return Weave.of(
            delta.apply(open_base(base.path, dtype="float32", device=base.model.device), in_place=True)
        ), None

    def zipped(place: Path, settings: ZipConfig) -> None:
        try:
            pack = zip_delta(
                delta,
                base,
                task.pairs("calibration") if settings.needs_calibration else None,
                settings,
                name=name,
                method=method,
                data=data,
                scores={"base": of_base, "specialist": of_specialist},
                refine_on=examples,
                work=place / "refine" if settings.refine is not None else None,
            )
        except TooSmall as error:
            write_json(place / "refused.json", {"least": error.least})
            return
        pack.save_pretrained(place / "pack")
        drop(place / "refine")

    with claim(folder):
        of_base, base_scores = score("base", "score the base", scored, lambda: (Weave.of(base), None))
        of_specialist, specialist_scores = score("fine-tune", "score the fine-tune", scored, specialist)
        _check_gain(of_base, of_specialist)
        trials: list[Trial] = []

        def keeps(ratio: float) -> bool:
            settings = config.model_copy(update={"ratio": ratio})
            place = folder / f"1-{1 / ratio:.6g}"
            inputs = {
                **common,
                "zip": settings.model_dump(mode="json"),
                "card": {"name": name, "method": method, "data": data, "scores": [of_base, of_specialist]},
            }
            run_step(f"zip to {ratio_text(ratio)}", place / "zip", inputs, lambda step: zipped(step, settings))
            if (place / "zip" / "refused.json").exists():
                least = read_json(place / "zip" / "refused.json")["least"]
                console.print(f"  too small: a pack of this delta takes at least {human_bytes(least)}")
                trials.append(Trial(ratio))
                return False
            pack = Skillpack.from_pretrained(place / "zip" / "pack")
            title = f"score the pack of {ratio_text(ratio)}"
            found, scores = score(
                f"{place.name}/score", title, {**scored, "pack": inputs}, lambda: (Weave.of(base, {name: pack}), name)
            )
            kept, low, high = retention(base_scores, specialist_scores, scores)
            # A mean of equal figures must not fail by a rounding error.
            enough = kept >= target - 1e-9
            trials.append(
                Trial(ratio, pack.nbytes, found["mean"], found["low"], found["high"], kept, low, high, enough)
            )
            console.print(f"  {human_bytes(pack.nbytes)} keep {kept:.1%} of the gain ({low:.1%} to {high:.1%})")
            return enough

        start = config.ratio if config.ratio is not None else 1 / 32
        found = smallest_ratio(keeps, start=start)
        if found is None:
            raise UserError(_out_of_reach(trials[-1], target))
        chosen = next(trial for trial in trials if trial.ratio == found)
        search = RetentionSearch(target, of_base, of_specialist, trials, chosen)
        write_json(folder / "search.json", asdict(search))
        return Skillpack.from_pretrained(folder / f"1-{1 / found:.6g}" / "zip" / "pack"), search


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
