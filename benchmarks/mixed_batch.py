"""Compare a mixed batch in one weave with the specialists one after another.

Claim: a batch of 12 prompts over three packs, decoded together by one weave, has a higher throughput than the three
full specialists (base + delta, each a model of its own in memory), which decode 4 of the prompts each, in turn.

All decode greedily, and exactly the same number of new tokens for each prompt (end tokens are ignored). The three ways
take turns in every repeat. The claim is the median over repeats of the specialists' seconds divided by the weave's
(both write the same number of tokens), with a bootstrap interval over repeats.

    python -m benchmarks.mixed_batch --weave runs/demo        after `make demo`; about five minutes on two cores
    python -m benchmarks.mixed_batch --quick                  a made-up weave, bfloat16 only, half a minute
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.record import Record, arguments, bootstrap, judged, positive, run
from benchmarks.common.skills import Built, add_weave_option, built
from skillweave.base import Prompt, prompt_ids
from skillweave.base.batching import pad_left
from skillweave.pipeline.speed import Batch, decode_exactly
from skillweave.progress import bar
from skillweave.report import Table
from skillweave.weave import Weave

NAME = "mixed_batch"
PER_SKILL = 4
DTYPES = ("bfloat16", "float32")
BASE = "base alone"
WOVEN = "weave, mixed"
SPECIALISTS = "specialists in turn"
COLOURS = {BASE: "#999999", WOVEN: "#009E73", SPECIALISTS: "#0072B2"}


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["small"])
    add_weave_option(parser)
    parser.add_argument("--tokens", type=positive, default=32, help="new tokens for each prompt (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=15, help="timed turns of each way (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.quick:
        options.tokens, options.repeats = 2, 2
    record = Record.begin(NAME, options, argv, seeds=[0])
    with built(options) as weave:
        count, packs = PER_SKILL * len(weave.skills), len(weave.skills)
        for dtype in DTYPES[:1] if options.quick else DTYPES:
            seconds = measure(weave, dtype, options.tokens, options.repeats)
            record.rows += rows(weave, dtype, options.tokens, seconds)
            ratios = np.array(seconds[SPECIALISTS]) / np.array(seconds[WOVEN])
            low, high = bootstrap(ratios, lambda picked: np.median(picked, axis=1))
            claim = f"{dtype}: throughput of {count} prompts over {packs} packs in one batch, over specialists in turn"
            record.claims.append(judged(claim, float(np.median(ratios)), low, high, "> 1"))
    record.finish(table(record.rows), plot(record.rows))


def measure(weave: Built, dtype: str, tokens: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat of each way."""
    # The weave's budget was set for the dtype it was built for; here float32 has to fit too.
    woven = Weave.from_pretrained(weave.folder, dtype=dtype, budget=sys.maxsize)
    prompts = {s.name: [entry.prompt for entry in s.task().split("test")[:PER_SKILL]] for s in weave.skills}
    names = [skill.name for skill in weave.skills] * PER_SKILL
    together = encode(woven.base, [prompts[name][at // len(prompts)] for at, name in enumerate(names)])
    specialists = [
        (weave.specialist(skill, dtype).model, encode(woven.base, prompts[skill.name])) for skill in weave.skills
    ]

    def one_after_another() -> None:
        for model, batch in specialists:
            decode_exactly(model, batch, tokens)

    def all_together(packs: Sequence[str | None]) -> None:
        with woven.packed_model.rows(packs) if any(packs) else contextlib.nullcontext():
            decode_exactly(woven.base.model, together, tokens)

    ways: dict[str, Callable[[], None]] = {
        BASE: lambda: all_together([None] * len(names)),
        WOVEN: lambda: all_together(names),
        SPECIALISTS: one_after_another,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with bar(f"{dtype}: decode in turns", (repeats + 1) * len(ways)) as advance:
        for repeat in range(-1, repeats):
            order = list(ways)
            order = order[repeat % len(order) :] + order[: repeat % len(order)]
            for way in order:
                began = time.perf_counter()
                ways[way]()
                if repeat >= 0:  # the run before the first warms caches and kernels
                    seconds[way].append(time.perf_counter() - began)
                advance()
    return seconds


def encode(base: Any, prompts: Sequence[Prompt]) -> Batch:
    """One batch of the prompts, padded to the longest of them."""
    tokenizer = base.tokenizer
    return pad_left([prompt_ids(tokenizer, prompt) for prompt in prompts], tokenizer.pad_token_id, base.model.device)


def rows(weave: Built, dtype: str, tokens: int, seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row of the result for each way."""
    count = PER_SKILL * len(weave.skills)
    batches = {BASE: f"1 x {count}", WOVEN: f"1 x {count}", SPECIALISTS: f"{len(weave.skills)} x {PER_SKILL}"}
    return [
        {
            "dtype": dtype,
            "way": way,
            "batches": batches[way],
            "new_tokens": count * tokens,
            "tokens_per_second": round(count * tokens / statistics.median(taken), 1),
            "median_seconds": round(statistics.median(taken), 4),
            "seconds": [round(value, 4) for value in taken],
        }
        for way, taken in seconds.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table of the throughput and time of each way."""
    header = ["way", "dtype", "batches", "new tokens", "seconds (median)", "fastest to slowest", "tokens/s"]
    return Table(
        header,
        [
            [
                row["way"],
                row["dtype"],
                row["batches"],
                str(row["new_tokens"]),
                f"{row['median_seconds']:.2f}",
                f"{min(row['seconds']):.2f} to {max(row['seconds']):.2f}",
                f"{row['tokens_per_second']:.0f}",
            ]
            for row in rows
        ],
    )


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of tokens per second by way and dtype."""
    figure = Figure(figsize=(6, 0.9 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    values = [row["tokens_per_second"] for row in rows]
    labels = [f"{row['way']}, {row['dtype']}" for row in rows]
    drawn = axes.barh(labels, values, color=[COLOURS[row["way"]] for row in rows])
    axes.bar_label(drawn, [f"{value:.0f}" for value in values], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(values))
    axes.set_xlabel("new tokens a second")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    run(main)
