"""Measure three costs of a decoding step that are not its products: attention, waking threads, and drawing tokens.

Claims: attention from the pages of the cache is faster by the compiled function than by gathering the pages with torch;
a step is faster if the threads of others are freed; and drawing from a vocabulary is faster by one uniform number than
by the noise of each token, and in a nucleus than by sorting the vocabulary.

The shapes are those of SmolLM2 with 16 requests: 30 layers of 9 heads, 3 of keys, 64 channels, 100 tokens each; 210
products in bfloat16; a vocabulary of 49,152. Both sides of each claim take turns in one run. "Before" is torch's
gathering, a step beside a thread that keeps its own threads, Gumbel noise, and a sorted vocabulary.

    python -m benchmarks.decode_step             a minute on two cores
    python -m benchmarks.decode_step --quick     two layers, three repeats
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.common.record import Record, arguments, bootstrap, judged, run
from skillweave.engine.compiled_attention import DecodingStep, compiled_attention, decoded
from skillweave.engine.paged_attention import decoded_with_torch
from skillweave.engine.sampler import RowSampler
from skillweave.engine.worker_threads import free_worker_threads
from skillweave.errors import UserError
from skillweave.report import Table

REQUESTS, LAYERS, HEADS, KEY_HEADS, SIZE, TOKENS, PAGE = 16, 30, 9, 3, 64, 100, 32
PRODUCTS, VOCABULARY = 210, 49_152
Work = Callable[[], None]


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    options = arguments(__doc__, ["small"]).parse_args(argv)
    if compiled_attention() is None:
        raise UserError("this machine cannot compile or run the function of attention: it needs g++ and AVX512")
    repeats, layers = (3, 2) if options.quick else (25, LAYERS)
    record = Record.begin("decode_step", options, argv, seeds=[0])
    with torch.inference_mode():
        for part, before, now in (attention(layers), draws(1.0), draws(0.9), threads(PRODUCTS * layers // LAYERS)):
            record.rows += [{"part": part, "before": 1e3 * a, "now": 1e3 * b} for a, b in turns(before, now, repeats)]
    for part in dict.fromkeys(row["part"] for row in record.rows):
        ratios = np.array([row["now"] / row["before"] for row in record.rows if row["part"] == part])
        interval = bootstrap(ratios, lambda picked: np.median(picked, axis=1))
        claim = f"{part}: time now over time before"
        record.claims.append(judged(claim, float(np.median(ratios)), *interval, "< 1"))
    record.finish(table(record.rows), plot(record.rows))


def turns(before: Work, now: Work, repeats: int) -> list[tuple[float, float]]:
    """Seconds of both, in turns, after each has run once."""
    before(), now()
    return [(seconds(before), seconds(now)) for _ in range(repeats)]


def seconds(work: Work) -> float:
    """How long a function takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def attention(layers: int) -> tuple[str, Work, Work]:
    """One query for each request in every layer."""
    pages = -(-TOKENS // PAGE)
    table = torch.randperm(REQUESTS * pages).view(REQUESTS, pages).int()
    ends = (torch.arange(REQUESTS + 1) * TOKENS).int()

    def rows(heads: int) -> Tensor:
        return torch.randn(1, REQUESTS, heads, SIZE).bfloat16().transpose(1, 2)

    def cache() -> Tensor:
        return torch.randn(REQUESTS * pages, PAGE, KEY_HEADS, SIZE).bfloat16()

    steps = [
        DecodingStep(rows(HEADS), rows(KEY_HEADS), rows(KEY_HEADS), 0.125, (cache(), cache()), table, ends)
        for _ in range(layers)
    ]

    def work(compute: Callable[..., Tensor]) -> Work:
        return lambda: [compute(step) for step in steps] and None

    return "attention", work(decoded_with_torch), work(decoded)


def draws(top_p: float) -> tuple[str, Work, Work]:
    """One token for each request."""
    scores = 3 * torch.randn(REQUESTS, VOCABULARY)
    generators = [torch.Generator().manual_seed(seed) for seed in range(REQUESTS)]
    samplers = [
        RowSampler(temperature=1.0, top_p=top_p, seed=seed, vocabulary=VOCABULARY, device="cpu")
        for seed in range(REQUESTS)
    ]

    def before() -> None:
        for row, generator in zip(scores, generators, strict=True):
            logits = row
            if top_p < 1:
                ordered, index = row.sort(descending=True)
                probabilities = ordered.softmax(dim=-1)
                beyond = probabilities.cumsum(dim=-1) - probabilities >= top_p
                logits = row.masked_fill(torch.zeros_like(beyond).scatter(0, index, beyond), -torch.inf)
            int((logits - torch.empty_like(row).exponential_(generator=generator).log_()).argmax())

    def now() -> None:
        for row, sampler in zip(scores, samplers, strict=True):
            sampler.draw(row)

    return f"draws, top_p {top_p:g}", before, now


def threads(products: int) -> tuple[str, Work, Work]:
    """The products of a step, in a thread beside one that has computed before and waits."""
    x, weights = torch.randn(REQUESTS, 576).bfloat16(), torch.randn(products, 1536, 576).bfloat16()

    def compute() -> None:
        for weight in weights:
            linear(x, weight)

    def in_a_thread() -> None:
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()

    def before() -> None:
        linear(x, weights[0])  # this thread has threads of its own from now on
        in_a_thread()

    def now() -> None:
        free_worker_threads()
        in_a_thread()

    return "products beside another thread", before, now


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The medians in milliseconds."""
    lines = []
    for part in dict.fromkeys(row["part"] for row in rows):
        medians = [statistics.median(row[side] for row in rows if row["part"] == part) for side in ("before", "now")]
        lines.append([part, *(f"{value:.1f} ms" for value in medians)])
    return Table(["part of a step", "before", "now"], lines)


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of the medians."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    figure = Figure(figsize=(5.5, 2.4), layout="constrained")
    axes = figure.subplots()
    for side, colour, shift in (("before", "#999999", -0.2), ("now", "#0072B2", 0.2)):
        values = [statistics.median(row[side] for row in rows if row["part"] == part) for part in parts]
        axes.barh([at + shift for at in range(len(parts))], values, 0.4, color=colour, label=side)
    axes.set_yticks(range(len(parts)), parts)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of a step with 16 requests")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    run(main)
