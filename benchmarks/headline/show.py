"""Claims, tables and plot of the benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.record import Claim, judged, student
from benchmarks.headline.measure import ADD, BASE, NAMED, ROUTED, SHARED, SPEED
from benchmarks.headline.questions import EVERYDAY, HARD, REWORDED
from benchmarks.headline.scale import LORA, MERGES, MONOLITH, MULTI, SPECIALIST, TEST
from skillweave.report import Table

Row = dict[str, Any]
Found = tuple[float, float, float]
ORDER = (BASE, SPECIALIST, NAMED, ROUTED, SHARED, LORA, MULTI, *MERGES, MONOLITH)
COLOURS = {
    BASE: "#BBBBBB",
    SPECIALIST: "#000000",
    NAMED: "#D55E00",
    ROUTED: "#E69F00",
    SHARED: "#F0E442",
    LORA: "#0072B2",
    MULTI: "#009E73",
    **dict.fromkeys(MERGES, "#56B4E9"),
    MONOLITH: "#CC79A7",
}


# -- figures -----------------------------------------------------------------------------------------------------------


def by_skill(rows: Sequence[Row], arm: str) -> dict[int, dict[str, float]]:
    """Return seed -> skill -> score of an arm. Only seeds in which every skill of some arm is measured are there."""
    skills = {skill for row in rows for skill in row["scores"]}
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        if row["arm"] == arm and row["split"] == TEST:
            found.setdefault(row["seed"], {}).update(row["scores"])
    return {seed: scores for seed, scores in found.items() if set(scores) == skills}


def means(rows: Sequence[Row], arm: str) -> dict[int, float]:
    """Return seed -> mean score over the skills, in points."""
    return {seed: 100 * statistics.fmean(scores.values()) for seed, scores in by_skill(rows, arm).items()}


def worst(rows: Sequence[Row], arm: str) -> dict[int, float]:
    """Return seed -> score of the worst skill, in points."""
    return {seed: 100 * min(scores.values()) for seed, scores in by_skill(rows, arm).items()}


def less(one: dict[int, float], other: dict[int, float]) -> list[float]:
    """Return the differences of the seeds that both have."""
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def _facts(rows: Sequence[Row], arm: str) -> list[Row]:
    return [row for row in rows if row["arm"] == arm and row["split"] == TEST]


# -- claims ------------------------------------------------------------------------------------------------------------


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Return the claims for which both sides are measured; with one seed the interval is infinite."""
    return [*_score_claims(rows), *_cost_claims(rows), *_added_claims(rows)]


def _score_claims(rows: Sequence[Row]) -> Iterator[Claim]:
    found = {arm: means(rows, arm) for arm in ORDER}
    for ours in (NAMED, ROUTED, SHARED):
        if values := less(found[SPECIALIST], found[ours]):
            yield judged(f"specialists' mean less that of the {ours}, points", *student(values), "< 1")
        for other, goal in [(MULTI, ">= 3"), *((merge, ">= 3") for merge in MERGES), (LORA, "> 0"), (MONOLITH, "> 0")]:
            if values := less(found[ours], found[other]):
                yield judged(f"mean of the {ours} less that of {_called(other)}, points", *student(values), goal)
    for kind in (REWORDED, EVERYDAY):
        both = [
            {
                row["seed"]: 100 * row["routing"][kind]["score"]
                for row in _facts(rows, arm)
                if "score" in row.get("routing", {}).get(kind, {})
            }
            for arm in (ROUTED, MULTI)
        ]
        if values := less(*both):
            yield judged(
                f"{kind}: score of the {ROUTED} less that of the multi-task model, points", *student(values), "> 0"
            )


def _cost_claims(rows: Sequence[Row]) -> Iterator[Claim]:
    facts = _facts(rows, SPEED)
    if facts:
        for way in (NAMED, ROUTED):
            ratios = [row["rates"][way] / row["rates"]["monolith"] for row in facts]
            yield judged(f"tokens/s of the {way}, over those of the monolith", *student(ratios), "> 1")
        for where in ("memory", "disk"):
            sizes = [row["bytes"][where]["monolith"] / row["bytes"][where]["weave"] for row in facts]
            yield judged(f"bytes of the monolith over those of the weave, {where}", *student(sizes), "> 1")


def _added_claims(rows: Sequence[Row]) -> Iterator[Claim]:
    facts = _facts(rows, ADD)
    if facts:
        changed = [100 * row["weave"]["changed"] for row in facts]
        yield judged("answers of six skills that a seventh pack changes, %", *_range(changed), "<= 0")
        unequal = [0.0 if row["weave"]["logits_equal"] else 1.0 for row in facts]
        yield judged("seeds in which a seventh pack changes a bit of their logits", *_range(unequal), "<= 0")
        changed = [100 * row["multi"]["changed"] for row in facts]
        yield judged("answers that the multi-task model, trained further, changes, %", *_range(changed), "> 0")


def _range(values: Sequence[float]) -> Found:
    return statistics.fmean(values), min(values), max(values)


def _called(arm: str) -> str:
    return {MULTI: "the multi-task model", LORA: "LoRAs of equal bytes", MONOLITH: "the monolith"}.get(arm, arm)


# -- tables and plot ---------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Table:
    """Return one line for each arm: scores, scores on prompts that are hard to route, costs, chosen settings.

    In brackets behind a hard kind: % that the router sent to a right pack (everyday: to the base), to the base in place
    of a pack, to a wrong pack.
    """
    skills = list(dict.fromkeys(skill for row in rows for skill in row["scores"]))
    lines = []
    for arm in ORDER:
        if per_seed := by_skill(rows, arm):
            own = [f"{100 * statistics.fmean(s[skill] for s in per_seed.values()):.1f}" for skill in skills]
            mean, low, high = student(list(means(rows, arm).values()))
            interval = f" ({low:.1f} to {high:.1f})" if len(per_seed) > 1 else ""
            lowest = f"{statistics.fmean(worst(rows, arm).values()):.1f}"
            lines.append(
                [arm, str(len(per_seed)), f"{mean:.1f}{interval}", lowest, *own, *_hard(rows, arm), *_costs(rows, arm)]
            )
    costs = ["KB of a skill", "MB in memory", "MB on disk", "tokens/s", "settings"]
    return Table(["arm", "seeds", "mean", "worst", *skills, *HARD, *costs], lines)


def _hard(rows: Sequence[Row], arm: str) -> list[str]:
    """Return the scores on the hard kinds; of the routed weave also the % that the router sent right, to the base in
    place of a pack, and to a wrong pack. What the named packs do is in the cell of the routed weave."""
    source, key = (ROUTED, "named_score") if arm == NAMED else (arm, "score")
    found = []
    for kind in HARD:
        own = [row["routing"][kind] for row in _facts(rows, source) if kind in row.get("routing", {})]
        text = f"{100 * statistics.fmean(each[key] for each in own):.1f}" if own and key in own[0] else "-"
        if arm == ROUTED and own:
            ways = ("right", "to_base", "wrong_pack")
            text += f" ({'/'.join(f'{100 * statistics.fmean(each[way] for each in own):.0f}' for way in ways)})"
        found.append(text)
    return found


def _costs(rows: Sequence[Row], arm: str) -> list[str]:
    own, facts = _facts(rows, arm), _facts(rows, SPEED)
    sizes = [row["bytes"] / 1e3 for row in own if "bytes" in row]
    side = {SPECIALIST: "specialists", NAMED: "weave", ROUTED: "weave", SHARED: "", MONOLITH: "monolith", LORA: ""}.get(
        arm, "one model"
    )
    settings = sorted({f"{row[key]:g}" for row in own for key in ("used_rate", "factor") if key in row})
    return [
        f"{statistics.fmean(sizes):.1f}" if sizes else "-",
        *(_megabytes(facts, where, side) for where in ("memory", "disk")),
        _rate(facts, "one model" if side == "specialists" else arm if side == "weave" else side),
        ", ".join(settings) or "-",
    ]


def _megabytes(facts: Sequence[Row], where: str, side: str) -> str:
    found = [row["bytes"][where][side] / 1e6 for row in facts if side]
    return f"{statistics.fmean(found):.3g}" if found else "-"


def _rate(facts: Sequence[Row], way: str) -> str:
    found = [row["rates"][way] for row in facts if way]
    return f"{statistics.fmean(found):.0f}" if found else "-"


def plot(rows: Sequence[Row]) -> Figure:
    """Return a figure: on the left the mean over the skills with its interval, on the right that of hard prompts."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    arms = [arm for arm in ORDER if means(rows, arm)]
    for at, arm in enumerate(arms):
        values = list(means(rows, arm).values())
        mean, low, high = student(values)
        left.barh(-at, mean, color=COLOURS[arm])
        if len(values) > 1:
            left.plot([low, high], [-at, -at], color="#444444", linewidth=1)
    left.set_yticks([-at for at in range(len(arms))], arms, fontsize=8)
    left.set_xlabel("mean score over six skills, %")
    routed = {
        arm: [row["routing"] for row in _facts(rows, arm) if "routing" in row]
        for arm in (BASE, ROUTED, MULTI, MONOLITH)
    }
    shown = {arm: facts for arm, facts in routed.items() if facts}
    # SmolLM2's everyday prompts have no right answers; they are only routed.
    kinds = [kind for kind in HARD if any("score" in one.get(kind, {}) for facts in shown.values() for one in facts)]
    for place, (arm, facts) in enumerate(shown.items()):
        heights = [100 * statistics.fmean(one.get(kind, {}).get("score", 0.0) for one in facts) for kind in kinds]
        spots = [at + (place - (len(shown) - 1) / 2) * 0.2 for at in range(len(kinds))]
        right.bar(spots, heights, width=0.2, color=COLOURS[arm], label=arm)
    right.set_xticks(range(len(kinds)), kinds, fontsize=8)
    right.set_ylabel("score, %")
    if shown:
        right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
