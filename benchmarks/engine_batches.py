"""Measure how fast many callers share the steps of the asynchronous engine.

64 callers, as 64 problems that are reasoned about at once, each submit a chain of short requests: the next one follows
when the answer to the one before is there. The answers differ in length, and the packs differ from request to request.

Claim: the engine writes more tokens a second than ``weave.generate`` does with the same batch size when it is given the
prompts of all chains at once, and need not wait for any answer.

Both take turns in one process, and their answers are drawn from the same distribution: a token is an end with a
probability of about one in eight, so most rows of a static batch end long before the last one. Figures are medians
over the repeats, with their range.

micro: a random micro Llama of 3 layers with two packs.

    python -m benchmarks.engine_batches           a minute on one core
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from matplotlib.figure import Figure

from benchmarks.common.record import Claim, Record, arguments, judged, positive, run
from skillweave.base import Sampling, open_base
from skillweave.delta import Delta
from skillweave.engine import AsyncEngine
from skillweave.micro import MicroShape, micro_model, micro_tokenizer
from skillweave.report import Table
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Reply, Weave

NAME = "engine_batches"
ENGINE = "engine, chains"
AT_ONCE = "weave.generate, all at once"
ENDS = 7
"""The letters a, b, ... that end an answer, beside the special tokens."""

Ask = tuple[str, str | None]
"""A prompt and its pack."""


@dataclass(frozen=True)
class Setting:
    """Sizes: ``callers`` chains of ``chain`` requests, answers of at most ``longest`` tokens."""

    callers: int = 64
    chain: int = 8
    longest: int = 48
    batch_size: int = 32


QUICK = Setting(callers=12, chain=2, longest=6, batch_size=4)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["micro"])
    parser.add_argument("--repeats", type=positive, default=3, help="of each way (default: %(default)s)")
    options = parser.parse_args(argv)
    setting = QUICK if options.quick else Setting()
    record = Record.begin(NAME, options, argv, [0])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        weave = _weave(Path(folder))
        chains = _chains(setting, weave.packs)
        ways = {ENGINE: _by_engine, AT_ONCE: _at_once}
        for work in ways.values():
            work(weave, chains, setting, 0)  # once, to warm up
        for repeat in range(1 if options.quick else options.repeats):
            for way, work in ways.items():
                record.rows.append({"way": way, "repeat": repeat, **work(weave, chains, setting, repeat)})
    record.claims = [
        _claim("tokens a second, engine over weave.generate", _ratios(record.rows), ">= 1"),
    ]
    record.finish(_table(record.rows), _plot(record.rows))


def _weave(folder: Path) -> Weave:
    """A random base with two packs of random deltas, and several end tokens."""
    tokenizer = micro_tokenizer()
    model = micro_model(MicroShape(hidden=128, layers=3, intermediate=256, context=512), 0)
    # No special token is in an answer then, so that its tokens can be counted in its text.
    letters = tokenizer.convert_tokens_to_ids([chr(ord("a") + index) for index in range(ENDS)])
    model.generation_config.eos_token_id = sorted({*tokenizer.all_special_ids, *letters})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    base = open_base(folder)
    packs = {}
    for seed, name in enumerate(("one", "two")):
        source = torch.Generator().manual_seed(seed)
        changes = {
            key: 0.02 * torch.randn(base.checkpoint.shape(key), generator=source)
            for key in base.checkpoint.names()
            if "proj" in key
        }
        delta = Delta(changes, base_fingerprint=base.fingerprint)
        packs[name] = zip_delta(delta, base, None, ZipConfig(ratio=0.25), name=name)
    return Weave.of(base, packs)


def _chains(setting: Setting, packs: Sequence[str]) -> list[list[Ask]]:
    """The requests of each caller, with prompts of 10 to 80 characters."""
    rng = Random(0)
    return [
        [
            ("".join(rng.choices("hijklmnopq rstuvwxyz", k=rng.randrange(10, 81))), rng.choice([None, *packs]))
            for _ in range(setting.chain)
        ]
        for _ in range(setting.callers)
    ]


# -- the two ways ----------------------------------------------------------------------------------------------------


def _by_engine(weave: Weave, chains: Sequence[Sequence[Ask]], setting: Setting, repeat: int) -> dict[str, float]:
    async def caller(engine: AsyncEngine, number: int) -> None:
        for step, (prompt, pack) in enumerate(chains[number]):
            seed = (repeat * len(chains) + number) * setting.chain + step
            await engine.submit(prompt, pack, Sampling(setting.longest, temperature=1.0, seed=seed)).reply()

    async def all_callers() -> dict[str, float]:
        async with AsyncEngine(weave, max_requests=setting.batch_size) as engine:
            began = time.perf_counter()
            await asyncio.gather(*(caller(engine, number) for number in range(len(chains))))
            seconds = time.perf_counter() - began
            counters = engine.counters()
        return {
            "seconds": seconds,
            "tokens": counters.completion_tokens,
            "steps": counters.steps,
            "step_tokens": counters.step_tokens,
        }

    return asyncio.run(all_callers())


def _at_once(weave: Weave, chains: Sequence[Sequence[Ask]], setting: Setting, repeat: int) -> dict[str, float]:
    asked = [one for chain in chains for one in chain]
    sampling = Sampling(setting.longest, temperature=1.0, batch_size=setting.batch_size, seed=1000 * repeat)
    began = time.perf_counter()
    replies = weave.generate([prompt for prompt, _ in asked], [pack for _, pack in asked], sampling)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "tokens": sum(map(_tokens, replies))}


def _tokens(reply: Reply) -> int:
    """The tokens of an answer: one for each character, and the end token."""
    return len(reply.text) + (reply.ended == "answer")


# -- what came of it -------------------------------------------------------------------------------------------------


def _speeds(rows: Sequence[dict], way: str) -> list[float]:
    return [row["tokens"] / row["seconds"] for row in rows if row["way"] == way]


def _ratios(rows: Sequence[dict]) -> list[float]:
    return [one / other for one, other in zip(_speeds(rows, ENGINE), _speeds(rows, AT_ONCE), strict=True)]


def _claim(what: str, values: Sequence[float], goal: str) -> Claim:
    return judged(what, statistics.median(values), min(values), max(values), goal)


def _table(rows: Sequence[dict]) -> Table:
    lines = []
    for way in (ENGINE, AT_ONCE):
        each = [row["step_tokens"] / row["steps"] for row in rows if row["way"] == way and "steps" in row]
        lines.append(
            [way, f"{statistics.median(_speeds(rows, way)):,.0f}", f"{statistics.median(each):.1f}" if each else ""]
        )
    return Table(["way", "tokens a second, median", "tokens of a step"], lines)


def _plot(rows: Sequence[dict]) -> Figure:
    figure = Figure(figsize=(6, 2), layout="constrained")
    axis = figure.subplots()
    ways = [ENGINE, AT_ONCE]
    axis.barh(ways, [statistics.median(_speeds(rows, way)) for way in ways], color=["#0072B2", "#999999"])
    axis.invert_yaxis()
    axis.set_xlabel("tokens a second")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    run(main)
