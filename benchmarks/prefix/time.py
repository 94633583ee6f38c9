"""Measure what one cached prefix for all packs saves: the time to the first token.

Claim: with a system prompt of 1,000 tokens and eight packs, the time to the first token falls by at least 5x. Each pack
that reads its own prompts reads the system prompt anew; packs with ``prefill: backbone`` read it from one cache.

Times are of an AsyncEngine, until the first token of each of the requests, which have one system prompt and different
questions. In every repeat the system prompt begins anew, so that nothing of it is cached. "In turn", a request is made
when the one before has its token. "At once", all are made together, after one request to the plain base, which reads
the system prompt. The value is the median over repeats of the ratio; the interval is a bootstrap over repeats. All
packs are the same one under different names: times depend on its size only.

    python -m benchmarks.prefix.time --weave runs/demo      after `make demo`; five minutes on two cores
    python -m benchmarks.prefix.time --quick                a made-up weave, half a minute
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.record import Record, arguments, bootstrap, judged, positive, run
from benchmarks.common.skills import Built, add_weave_option, built
from skillweave.base import Prompt, Sampling, open_base
from skillweave.engine import AsyncEngine
from skillweave.pack import Skillpack
from skillweave.pack.schema import Prefill
from skillweave.progress import bar
from skillweave.report import Table
from skillweave.weave import Weave

NAME = "prefix.time"
FASTER = ">= 5"
OWN: Prefill = "pack"
BACKBONE: Prefill = "backbone"
WAYS = {OWN: "each pack reads it", BACKBONE: "one cached prefix"}
COLOURS = {OWN: "#0072B2", BACKBONE: "#009E73"}
SYSTEM = "You answer requests of our customers. Keep to the rules of the house, which follow here one after the other. "
CLAIMS = (
    ("in turn", "mean of all packs, asked in turn (the first one reads the prefix)", np.mean),
    ("in turn", "median pack, asked in turn", np.median),
    ("at once", "mean of all packs, asked at once after a request to the base", np.mean),
)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["small"])
    add_weave_option(parser)
    parser.add_argument("--system", type=positive, default=1000, help="tokens of the system prompt")
    parser.add_argument("--packs", type=positive, default=8, help="packs that are asked (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=5, help="timed repeats (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.quick:
        options.system, options.packs, options.repeats = 64, 2, 2
    record = Record.begin(NAME, options, argv, seeds=[0])
    with built(options) as weave:
        seconds = asyncio.run(measure(weave, options))
    for (way, manner), repeats in seconds.items():
        row = {"prefill": way, "manner": manner, "system_tokens": options.system, "packs": options.packs}
        record.rows.append({**row, "seconds": [[round(one, 4) for one in each] for each in repeats]})
    for manner, title, reduce in CLAIMS:
        own, shared = (reduce(np.array(seconds[way, manner]), axis=1) for way in (OWN, BACKBONE))
        low, high = bootstrap(own / shared, lambda picked: np.median(picked, axis=1))
        claim = f"time to first token, own prefill over one prefix: {title}"
        record.claims.append(judged(claim, float(np.median(own / shared)), low, high, FASTER))
    record.finish(table(record.rows), plot(record.rows))


async def measure(weave: Built, options: Any) -> dict[tuple[Prefill, str], list[list[float]]]:
    """Return (way, manner) -> repeats -> seconds to the first token of each pack. The ways take turns."""
    base = open_base(weave.base_ref)
    pack = Skillpack.from_pretrained(weave.skills[0].pack_folder)
    questions = [f"Which rule is about case number {number}?" for number in range(options.packs)]
    names: dict[Prefill, list[str]] = {way: [f"{way}-{at}" for at in range(options.packs)] for way in WAYS}
    packs: dict[str, Skillpack] = {}
    for way, of_way in names.items():
        marked = Skillpack(pack.card.model_copy(update={"prefill": way}), pack.tensors, pack.carried)
        packs |= dict.fromkeys(of_way, marked)
    woven = Weave.of(base, packs, unpacked_packs=len(packs))
    taken: dict[tuple[Prefill, str], list[list[float]]] = {
        (way, manner): [] for way in WAYS for manner in ("in turn", "at once")
    }
    fresh = itertools.count()

    def asked(tokens: int) -> list[Prompt]:
        system = system_prompt(base.tokenizer, next(fresh), tokens)
        return [[{"role": "system", "content": system}, {"role": "user", "content": text}] for text in questions]

    async with AsyncEngine(woven) as engine:

        async def first_token(prompt: Prompt, name: str | None) -> float:
            began = time.perf_counter()
            await engine.submit(prompt, name, Sampling(1)).reply()
            return time.perf_counter() - began

        with bar("asking", 2 * len(WAYS) * (options.repeats + 1)) as advance:
            for repeat in range(-1, options.repeats):
                # What comes before the first repeat warms kernels and unpacks the packs; a short prompt does that.
                tokens = options.system if repeat >= 0 else min(64, options.system)
                for way, of_way in names.items():
                    prompts = asked(tokens)
                    in_turn = [await first_token(prompt, name) for prompt, name in zip(prompts, of_way, strict=True)]
                    advance()
                    prompts = asked(tokens)
                    await first_token(prompts[0], None)
                    at_once = await asyncio.gather(*map(first_token, prompts, of_way))
                    advance()
                    if repeat >= 0:
                        taken[way, "in turn"].append(in_turn)
                        taken[way, "at once"].append(list(at_once))
    return taken


def system_prompt(tokenizer: Any, number: int, tokens: int) -> str:
    """Return a system prompt of so many tokens, which begins with its number."""
    ids = tokenizer(f"Set of rules {number}. " + SYSTEM * tokens, add_special_tokens=False)["input_ids"][:tokens]
    return tokenizer.decode(ids)


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A line for each way of serving."""
    lines = []
    for row in rows:
        first = statistics.median(each[0] for each in row["seconds"])
        mean = statistics.median(statistics.fmean(each) for each in row["seconds"])
        middle = statistics.median(statistics.median(each) for each in row["seconds"])
        figures = [f"{value:.2f}" for value in (first, middle, mean)]
        lines.append([row["manner"], WAYS[row["prefill"]], str(row["system_tokens"]), str(row["packs"]), *figures])
    header = [
        "asked",
        "the system prompt",
        "its tokens",
        "packs",
        "s to first token, first pack",
        "median pack",
        "mean",
    ]
    return Table(header, lines)


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of the mean time to the first token."""
    figure = Figure(figsize=(6, 2.4), layout="constrained")
    axes = figure.subplots()
    means = [statistics.median(statistics.fmean(each) for each in row["seconds"]) for row in rows]
    labels = [f"{row['manner']}, {WAYS[row['prefill']]}" for row in rows]
    drawn = axes.barh(labels, means, color=[COLOURS[row["prefill"]] for row in rows])
    axes.bar_label(drawn, [f"{value:.2f}" for value in means], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(means))
    axes.set_xlabel("seconds to the first token, mean of the packs")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    run(main)
