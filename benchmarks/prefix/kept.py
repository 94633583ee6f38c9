"""Measure what a skill keeps if the backbone reads its prompts, untrained for it and trained for it.

Claim: a pack that was refined for it (``zip --refine --prefill backbone``) keeps at least 97% of the skill's gain when
the backbone reads its prompts. The gain is that of the pack of the same size that is not refined and reads its prompts
itself, over the base. For comparison, the share that this pack keeps, which was not trained for it.

Scores are the verifier's on the task's test prompts, greedy; the interval is a bootstrap over prompts. Both packs of a
ratio come from one fine-tune. What was made is kept in runs/prefix, so a stopped run resumes.

    python -m benchmarks.prefix.kept --weave runs/demo      after `make demo`; ten minutes on two cores
    python -m benchmarks.prefix.kept --quick                a made-up weave, a minute
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.record import Record, arguments, judged, positive, run
from benchmarks.common.skills import Built, Skill, add_weave_option, built
from skillweave.artefact import write_json
from skillweave.base import Prompt, Sampling, open_base
from skillweave.errors import UserError, nearest
from skillweave.files.hashes import digest
from skillweave.files.read import read_json
from skillweave.pack import Skillpack, is_skillpack
from skillweave.pack.schema import Prefill
from skillweave.pipeline.retention import retention
from skillweave.report import Table
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.skillzip.refine.work import delta_digest
from skillweave.tasks import evaluate
from skillweave.weave import Weave

NAME = "prefix.kept"
RUNS = Path("runs/prefix")
KEPT = ">= 0.97"
BASE, PLAIN, TRAINED = "base", "not refined", "refined for it"
OWN: Prefill = "pack"
BACKBONE: Prefill = "backbone"
ARMS: tuple[tuple[str, Prefill], ...] = ((PLAIN, OWN), (PLAIN, BACKBONE), (TRAINED, BACKBONE))
COLOURS = {OWN: "#0072B2", BACKBONE: "#009E73"}
TOKENS = 40
"""the longest answer"""


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["small"])
    add_weave_option(parser)
    parser.add_argument("--skill", default="json_calls", help="the skill of the weave (default: %(default)s)")
    parser.add_argument("--ratios", nargs="+", default=["1/64"], help="sizes of the packs (default: %(default)s)")
    parser.add_argument("--prompts", type=positive, default=200, help="test prompts (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=50, help="steps of the refinement (default: %(default)s)")
    parser.add_argument("--train", type=positive, default=192, help="prompts of the refinement (default: %(default)s)")
    options = parser.parse_args(argv)
    refine: dict[str, Any] = {"steps": options.steps, "prompts": options.train, "max_new_tokens": TOKENS}
    if options.quick:
        options.prompts = 2
        refine = {"steps": 1, "batch_size": 2, "prompts": 4, "held_out": 2, "max_new_tokens": 2}
    record = Record.begin(NAME, options, argv, seeds=[0])
    with built(options) as weave, tempfile.TemporaryDirectory() as temporary:
        names = [skill.name for skill in weave.skills]
        if options.skill not in names:
            raise UserError(f"the weave has no skill '{options.skill}'; {nearest(options.skill, names)}")
        skill = weave.skills[names.index(options.skill)]
        folder = Path(temporary) if options.quick else RUNS
        for ratio in options.ratios:
            measure(record, Packs(weave, skill, ratio, refine, folder), options.prompts, 2 if options.quick else TOKENS)
    record.finish(table(record.rows), plot(record.rows))


class Packs:
    """The two packs of a skill at one ratio; each is made once and kept in ``folder``."""

    def __init__(self, weave: Built, skill: Skill, ratio: str, refine: dict[str, Any], folder: Path) -> None:
        self.ratio, self._skill, self._refine, self._folder = ratio, skill, refine, folder
        self.base = open_base(weave.base_ref)
        self.task = skill.task()

    def zipped(self, title: str) -> Skillpack:
        """Return the pack that is not refined, or the one that was refined for prompts that the backbone reads."""
        more = {"refine": self._refine, "prefill": BACKBONE} if title == TRAINED else {}
        config = ZipConfig.model_validate({"ratio": self.ratio, "allow_left_out": True, **more})
        delta = self._skill.delta
        place = self._folder / digest([delta_digest(delta), config.model_dump(mode="json")])
        if not is_skillpack(place):
            refine = config.refine
            examples = None if refine is None else self.task.examples(("calibration", "train"), refine.prompts)
            work = place.with_suffix(".work")
            pack = zip_delta(delta, self.base, None, config, name="skill", refine_on=examples, work=work)
            pack.save_pretrained(place)
        return Skillpack.from_pretrained(place)

    def scores(self, pack: Skillpack | None, prefill: Prefill, limit: int, tokens: int) -> np.ndarray:
        """Return the score of each test prompt (n,), if ``prefill`` reads the prompts of the pack (None: the base)."""
        if pack is not None:
            pack.card.prefill = prefill
        what = [self.base.fingerprint, self.task.key, pack and pack.digest, limit, tokens]
        file = self._folder / f"scores-{digest(what)}.json"
        if not file.exists():
            write_json(file, self._scored(pack, prefill, limit, tokens))
        return np.array(read_json(file))

    def _scored(self, pack: Skillpack | None, prefill: Prefill, limit: int, tokens: int) -> list[float]:
        woven = Weave.of(self.base, {} if pack is None else {"skill": pack})
        sampling = Sampling(max_new_tokens=tokens, batch_size=128)

        def answers(prompts: list[Prompt]) -> list[str]:
            name = None if pack is None else "skill"
            return [reply.text for reply in woven.generate(prompts, name, sampling, label=f"answers, {prefill}")]

        return evaluate(self.task, answers, limit=limit).scores


def measure(record: Record, packs: Packs, limit: int, tokens: int) -> None:
    """Add the scores of the packs of one ratio, and the claims about what is kept of the gain."""
    found: dict[tuple[str, Prefill], np.ndarray] = {}

    def row(pack: str, prefill: Prefill, scores: np.ndarray, **more: Any) -> None:
        found[pack, prefill] = scores
        each = [round(float(score), 4) for score in scores]
        score = round(float(scores.mean()), 4)
        record.rows.append(
            {"ratio": packs.ratio, "pack": pack, "prefill": prefill, "score": score, **more, "each": each}
        )

    row(BASE, OWN, packs.scores(None, OWN, limit, tokens))
    for title, prefill in ARMS:
        pack = packs.zipped(title)
        made = {"bytes": pack.nbytes, "marked": pack.card.prefill, "measured": pack.card.codec.measured}
        row(title, prefill, packs.scores(pack, prefill, limit, tokens), **made)
    base, best = found[BASE, OWN], found[PLAIN, OWN]
    for title in (PLAIN, TRAINED):
        kept = (0.0, 0.0, 0.0)  # a made-up skill gains nothing
        if best.mean() > base.mean():
            kept = retention(base, best, found[title, BACKBONE])
        claim = f"{packs.ratio}: share of the gain that is kept if the backbone reads the prompts, {title}"
        record.claims.append(judged(claim, *kept, KEPT))


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A line for each pack and prefill."""
    lines = []
    for row in rows:
        by_kl = row.get("measured", {}).get("prefill", {}).get("retained") if row["prefill"] == BACKBONE else None
        lines.append(
            [
                row["pack"],
                row["ratio"],
                row["prefill"],
                f"{row['bytes']:,}" if "bytes" in row else "-",
                f"{row['score']:.1%}",
                "-" if by_kl is None else f"{by_kl:.1%}",
            ]
        )
    return Table(["pack", "ratio", "who reads the prompts", "bytes", "score", "gain kept, by KL on the card"], lines)


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of the scores."""
    figure = Figure(figsize=(7, 0.8 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{row['ratio']}, {row['pack']}, read by the {row['prefill']}" for row in rows]
    labels = [BASE if row["pack"] == BASE else label for row, label in zip(rows, labels, strict=True)]
    drawn = axes.barh(
        range(len(rows)), [100 * row["score"] for row in rows], color=[COLOURS[r["prefill"]] for r in rows]
    )
    axes.bar_label(drawn, [f"{row['score']:.1%}" for row in rows], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 110)
    axes.set_xlabel("score, %")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    run(main)
