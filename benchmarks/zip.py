"""Compare codecs on the demo's deltas: how close a pack of a given size comes to the specialist.

Claims: at equal bytes, SkillZip in four bits is closer to the specialist than a truncated SVD in bf16. Every pack keeps
within its bytes.

The deltas are those of the build, as they were trained; nothing is chosen or scaled to suit a codec. Closeness is
KL(specialist || packed) in nats on held-out test prompts: over the tokens of the gold answer (teacher forcing), in
float32, averaged over a prompt's tokens and then over prompts. The packed model is the one that is served: base and
pack side by side, SkillZip's codes as integers. The main rows are also scored on the task. Each claim is one skill's
ratio of two mean KLs, with a bootstrap interval over prompts.

A row takes about a minute on two cores, all rows half an hour. Finished rows lie in FOLDER.bench/zip beside the weave
and are not measured again, so that a stopped run resumes; ``--limit`` splits the work.

    python -m benchmarks.zip --weave runs/demo                after `make demo`
    python -m benchmarks.zip --weave runs/demo --limit 5      at most five new rows; what is there is written
    python -m benchmarks.zip --quick                          a made-up delta, a quarter of a minute
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.common.record import Claim, Record, arguments, bootstrap, judged, positive, run
from benchmarks.common.skills import Built, Skill, add_weave_option, built
from skillweave.artefact import write_json
from skillweave.base import Base, Prompt, Sampling, answer_ids, generate, open_base, prompt_ids
from skillweave.base.batching import pad_right
from skillweave.files.hashes import digest
from skillweave.files.read import read_json
from skillweave.pack import Skillpack
from skillweave.progress import console
from skillweave.report import Table, versions
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.tasks import Score, evaluate
from skillweave.units import human_bytes
from skillweave.weave import Weave

NAME = "zip"
PLAIN = "no pack (the base)"
SPECIALIST = "the delta itself"
INT4 = "skillzip int4"
INT8 = "skillzip int8"
SVD = "svd bf16"
CODECS: dict[str, dict[str, Any]] = {
    INT4: {"bits": 4},
    INT8: {"bits": 8},
    "skillzip int4, not rotated": {"bits": 4, "rotate": False},
    "skillzip int4, activation-aware": {"bits": 4, "activation_aware": True},
    SVD: {"codec": "svd"},
}
COLOURS = {INT4: "#E69F00", INT8: "#D55E00", SVD: "#0072B2"}
MAIN = "1/32"
OTHERS = ("1/16", "1/64")
BATCH = 8

Around = Callable[[int], AbstractContextManager[Any]]
"""Gives the context for a batch of that many rows: packs, or ``nullcontext`` for none."""


@dataclass(frozen=True)
class Plan:
    """One row to measure; ``ratio`` is empty if nothing is zipped."""

    skill: str
    codec: str
    ratio: str = ""
    scored: bool = False


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["small"])
    add_weave_option(parser)
    parser.add_argument("--limit", type=positive, help="at most this many new rows (default: all)")
    parser.add_argument("--prompts", type=positive, default=32, help="test prompts for the KL (default: %(default)s)")
    parser.add_argument("--score", type=positive, default=64, help="test prompts for the score (default: %(default)s)")
    parser.add_argument(
        "--tokens", type=positive, default=40, help="longest answer that is scored (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.prompts, options.score, options.tokens = 2, 2, 4
    record = Record.begin(NAME, options, argv, seeds=[0])
    with built(options) as weave:
        todo = plans([skill.name for skill in weave.skills])
        if options.quick:
            todo = [plan for plan in todo if plan.skill == weave.skills[0].name and plan.codec in (PLAIN, INT4, SVD)]
            todo = [plan for plan in todo if plan.ratio in ("", MAIN)]
        sizes = {"prompts": options.prompts, "score": options.score, "tokens": options.tokens}
        record.rows = measure_all(weave, todo, sizes, options.limit)
    record.claims = claims(record.rows)
    record.finish(table(record.rows), plot(record.rows), seconds=sum(row["seconds"] for row in record.rows))


def plans(skills: Sequence[str]) -> list[Plan]:
    """All rows, the most informative first."""
    main_codecs = [INT4, SVD, INT8]
    first = [Plan(skill, codec, scored=True) for codec in (PLAIN, SPECIALIST) for skill in skills]
    first += [Plan(skill, codec, MAIN, scored=True) for codec in main_codecs for skill in skills]
    rest = [Plan(skill, codec, MAIN) for codec in CODECS if codec not in main_codecs for skill in skills]
    return first + rest + [Plan(skill, codec, ratio) for ratio in OTHERS for codec in main_codecs for skill in skills]


def measure_all(weave: Built, todo: Sequence[Plan], sizes: dict[str, int], limit: int | None) -> list[dict[str, Any]]:
    """The rows of the plans; rows that were measured before come from their files."""
    work = weave.folder.with_name(f"{weave.folder.name}.bench") / NAME
    files = {plan: work / f"{_key(weave, plan, sizes)}.json" for plan in todo}
    missing = [plan for plan in todo if not files[plan].exists()]
    if len(missing) < len(todo):
        console.print(f"{len(todo) - len(missing)} of {len(todo)} rows were measured before, in {work}")
    measuring: dict[str, Measuring] = {}
    base: Base | None = None
    for plan in missing[:limit]:
        base = base or open_base(weave.base_ref, dtype="float32")
        skill = next(skill for skill in weave.skills if skill.name == plan.skill)
        here = measuring.setdefault(plan.skill, Measuring(weave, skill, base, sizes))
        console.print(f"[bold]{plan.skill}: {plan.codec} {plan.ratio}[/bold]")
        write_json(files[plan], here.row(plan))
    if limit is not None and len(missing) > limit:
        console.print(f"{len(missing) - limit} rows are left: run the same command again")
    return [read_json(file) for file in files.values() if file.exists()]


def _key(weave: Built, plan: Plan, sizes: dict[str, int]) -> str:
    """A file name that changes with every input of the row."""
    skill = next(skill for skill in weave.skills if skill.name == plan.skill)
    settings = ZipConfig(ratio=plan.ratio, **CODECS[plan.codec]).model_dump(mode="json") if plan.ratio else plan.codec
    card = Skillpack.from_pretrained(skill.pack_folder).card
    delta = read_json(skill.delta_folder / "delta.json")["files"]
    return digest([plan.skill, card.data, delta, settings, plan.scored, sizes, versions()])


# -- one row ---------------------------------------------------------------------------------------------------------


class Measuring:
    """The model, prompts and reference of one skill, which its rows share."""

    def __init__(self, weave: Built, skill: Skill, base: Base, sizes: dict[str, int]) -> None:
        self.weave = weave
        self.skill = skill
        self.base = base
        self.delta = skill.delta
        self.task = skill.task()
        self.sizes = sizes
        pairs = self.task.pairs("test")[: sizes["prompts"]]
        self.pairs = [(prompt_ids(base.tokenizer, p), answer_ids(base.tokenizer, a)) for p, a in pairs]

    def row(self, plan: Plan) -> dict[str, Any]:
        """Measure one plan."""
        began = time.monotonic()
        row: dict[str, Any] = {
            "skill": plan.skill,
            "codec": plan.codec,
            "ratio": plan.ratio or None,
            "delta_bytes": self.delta.bf16_nbytes,
            "delta_over_base": self.delta_over_base,
        }
        score: Score | None = None
        if plan.codec == SPECIALIST:
            kl = np.zeros(len(self.pairs))
            row |= {"pack_bytes": self.delta.nbytes, "weight_error": 0.0}
            if plan.scored:
                score = self.score_of(self.weave.specialist(self.skill, "float32").model)
        elif plan.codec == PLAIN:
            kl = self.kl_of(nullcontext)
            row |= {"pack_bytes": 0, "weight_error": 1.0}
            if plan.scored:
                score = self.score_of(self.base.model)
        else:
            pack = self.zip(plan)
            row |= {"pack_bytes": pack.nbytes, "weight_error": pack.card.codec.measured["weight_error"]}
            woven = Weave.of(self.base, {plan.skill: pack})
            kl = self.kl_of(lambda rows: woven.packed_model.rows([plan.skill] * rows))
            if plan.scored:
                score = self.score_of_weave(woven)
        row |= {"kl": float(kl.mean()), "kl_of_prompts": [float(f"{value:.6g}") for value in kl]}
        row["score"] = {"mean": score.mean, "low": score.low, "high": score.high, "n": score.n} if score else None
        gc.collect()
        return {**row, "seconds": round(time.monotonic() - began, 1)}

    def zip(self, plan: Plan) -> Skillpack:
        """The pack that the plan describes."""
        config = ZipConfig(ratio=plan.ratio, **CODECS[plan.codec])
        calibration = self.task.pairs("calibration") if config.needs_calibration else None
        return zip_delta(self.delta, self.base, calibration, config, name=plan.skill)

    @functools.cached_property
    def delta_over_base(self) -> float:
        """||delta|| / ||W|| over all changed tensors of the base: how far training moved the weights."""
        checkpoint = self.base.checkpoint
        names = [name for name in self.delta.names() if not self.delta.whole(name)]
        far = sum(float(self.delta.tensor(name).double().square().sum()) for name in names)
        return float(f"{(far / sum(float(checkpoint.tensor(n).double().square().sum()) for n in names)) ** 0.5:.4g}")

    @functools.cached_property
    def wanted(self) -> list[torch.Tensor]:
        """The specialist's log-probabilities, float32 (answer tokens, vocabulary) for each pair."""
        model = self.weave.specialist(self.skill, "float32").model
        return list(answer_log_probabilities(model, self.pairs, nullcontext))

    def kl_of(self, around: Around) -> np.ndarray:
        """KL(specialist || the base inside ``around(rows)``) of each prompt, float64 (prompts,)."""
        found = answer_log_probabilities(self.base.model, self.pairs, around)
        return np.array([mean_kl(wanted, has) for wanted, has in zip(self.wanted, found, strict=True)])

    def score_of(self, model: Any) -> Score:
        """The task's score of a whole model."""

        def answers(prompts: list[Prompt]) -> list[str]:
            return [texts[0] for texts in generate(model, self.base.tokenizer, prompts, self.sampling, label="answer")]

        return evaluate(self.task, answers, limit=self.sizes["score"])

    def score_of_weave(self, woven: Weave) -> Score:
        """The task's score of the base with the pack."""

        def answers(prompts: list[Prompt]) -> list[str]:
            return [reply.text for reply in woven.generate(prompts, self.skill.name, self.sampling, label="answer")]

        return evaluate(self.task, answers, limit=self.sizes["score"])

    @property
    def sampling(self) -> Sampling:
        """Greedy."""
        return Sampling(max_new_tokens=self.sizes["tokens"])


@torch.no_grad()
def answer_log_probabilities(
    model: Any, pairs: Sequence[tuple[list[int], list[int]]], around: Around
) -> Iterator[torch.Tensor]:
    """For each (prompt ids, answer ids): log-probabilities at the answer's tokens, float32 (tokens, vocabulary), CPU.

    Batches are padded on the right, which causal attention does not read; ``around(rows)`` is entered for each.
    """
    for at in range(0, len(pairs), BATCH):
        batch = pairs[at : at + BATCH]
        ids, _ = pad_right([prompt + answer for prompt, answer in batch], 0, model.device)
        with around(len(batch)):
            logits = model(input_ids=ids, use_cache=False).logits
        for row, (prompt, answer) in zip(logits, batch, strict=True):
            first = len(prompt) - 1  # the logits that predict the answer's first token
            yield row[first : first + len(answer)].float().log_softmax(dim=-1).cpu()


def mean_kl(wanted: torch.Tensor, has: torch.Tensor) -> float:
    """Mean over tokens of KL(wanted || has) in nats, from log-probabilities (tokens, vocabulary)."""
    wanted = wanted.double()
    return float((wanted.exp() * (wanted - has.double())).sum(dim=-1).mean())


# -- what the rows say -----------------------------------------------------------------------------------------------


def claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """Claims: closeness at equal bytes, skill by skill, and the byte budget."""
    found = []
    at = {(row["skill"], row["codec"], row["ratio"]): row for row in rows}
    for skill in dict.fromkeys(row["skill"] for row in rows):
        ours, peer = at.get((skill, INT4, MAIN)), at.get((skill, SVD, MAIN))
        if ours is None or peer is None:
            continue
        both = np.array([peer["kl_of_prompts"], ours["kl_of_prompts"]]).T
        low, high = bootstrap(both, lambda picked: picked[..., 0].mean(axis=1) / picked[..., 1].mean(axis=1))
        claim = f"{skill}: KL of {SVD} over KL of {INT4}, both at {MAIN} of the delta"
        found.append(judged(claim, peer["kl"] / ours["kl"], low, high, "> 1"))
    limits = [(row, ZipConfig(ratio=row["ratio"]).ratio) for row in rows if row["ratio"]]
    shares = [row["pack_bytes"] / (ratio * row["delta_bytes"]) for row, ratio in limits]
    if shares:
        claim = "bytes of a pack over the bytes asked for: the most (least to most of all packs)"
        found.append(judged(claim, max(shares), min(shares), max(shares), "<= 1"))
    return found


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table with one line for each codec and ratio: bytes, and each skill's KL (thousandths) and score (percent)."""
    skills = list(dict.fromkeys(row["skill"] for row in rows))
    at = {(row["codec"], row["ratio"], row["skill"]): row for row in rows}
    lines = []
    for codec, ratio in dict.fromkeys((row["codec"], row["ratio"]) for row in rows):
        own = [at.get((codec, ratio, skill)) for skill in skills]
        cells = [codec, ratio or "-", human_bytes(max(row["pack_bytes"] for row in own if row))]
        cells += [f"{1000 * row['kl']:.3g}" if row else "-" for row in own]
        cells += [f"{100 * row['score']['mean']:.0f}" if row and row["score"] else "-" for row in own]
        lines.append(cells)
    header = ["codec", "of the delta", "bytes", *(f"{s}: 1000 KL" for s in skills), *(f"{s}: %" for s in skills)]
    return Table(header, lines)


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of KL against bytes, one panel for each skill; a line shows the plain base."""
    skills = list(dict.fromkeys(row["skill"] for row in rows))
    figure = Figure(figsize=(1 + 3 * len(skills), 3.2), layout="constrained")
    panels = figure.subplots(1, len(skills), squeeze=False, sharey=True)[0]
    for axes, skill in zip(panels, skills, strict=True):
        own = [row for row in rows if row["skill"] == skill]
        for codec, colour in COLOURS.items():
            shown = sorted((row["pack_bytes"], row["kl"]) for row in own if row["codec"] == codec)
            if shown:
                axes.plot(*zip(*[(b / 1e6, kl) for b, kl in shown], strict=True), "o-", color=colour, label=codec)
        for row in own:
            if row["codec"] == PLAIN:
                axes.axhline(row["kl"], color="#999999", linestyle="--", label=PLAIN)
        axes.set_yscale("log")
        axes.set_xlim(left=0)
        axes.set_title(skill, fontsize=10)
        axes.set_xlabel("pack, MB")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("KL to the specialist, nats a token")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8, frameon=False
    )
    return figure


if __name__ == "__main__":
    run(main)
