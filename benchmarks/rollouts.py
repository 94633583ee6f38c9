"""Measure the cost of rollouts with tools: shared expert prefixes, and tools that run while other rows still write.

Claims: branches from one expert trace cost less if their common prefix is computed once. A batch of conversations with
a slow tool ends sooner if each call runs as soon as its turn is over than if it waits for the whole batch.

Both sides take turns in one process. Figures are ratios: medians over the repeats, with their range.

micro: a random micro Llama of 3 layers. small: SmolLM2 in bfloat16.

    python -m benchmarks.rollouts                     micro: seconds
    python -m benchmarks.rollouts --scale small       SmolLM2: some minutes on two cores
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.common.record import Claim, Record, arguments, judged, positive, run
from skillweave.base import open_base
from skillweave.micro import MicroShape, micro_model, micro_tokenizer
from skillweave.report import Table
from skillweave.tools import CallFormat, Toolbox
from skillweave.tools.conversation import ConversationSettings, Start, play
from skillweave.tools.writer import Writer

NAME = "rollouts"
SHARED = "shared"
ANEW = "anew"
AT_ONCE = "as soon as a turn is over"
AFTERWARDS = "after the batch"


@dataclass(frozen=True)
class Setting:
    """Sizes of both measurements.

    Prefixes: each of ``traces`` expert traces (``length`` tokens) gets ``branches`` of ``written`` tokens each. Tools:
    ``rows`` conversations, each with a call that takes ``seconds``.
    """

    traces: int = 8
    branches: int = 8
    length: int = 160
    written: int = 16
    rows: int = 32
    seconds: float = 0.05


QUICK = Setting(traces=2, branches=4, length=60, written=4, rows=6, seconds=0.01)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["micro", "small"])
    parser.add_argument("--repeats", type=positive, default=7, help="of each side (default: %(default)s)")
    options = parser.parse_args(argv)
    setting = QUICK if options.quick else Setting()
    record = Record.begin(NAME, options, argv, [0])
    model, tokenizer = _model(options.scale if not options.quick else "micro")
    ways: dict[tuple[str, str], Callable[[], None]] = {
        **{("prefixes", way): lambda way=way: _branch(model, tokenizer, setting, way) for way in (SHARED, ANEW)},
        **{("tools", way): lambda way=way: _call(model, tokenizer, setting, way) for way in (AT_ONCE, AFTERWARDS)},
    }
    for work in ways.values():
        work()  # once, to warm up
    for repeat in range(2 if options.quick else options.repeats):
        for (what, way), work in ways.items():
            began = time.perf_counter()
            work()
            record.rows.append({"what": what, "way": way, "repeat": repeat, "seconds": time.perf_counter() - began})
    record.claims = [
        _ratio(record.rows, "prefixes", ANEW, SHARED, "each prefix anew over shared prefixes, time"),
        _ratio(record.rows, "tools", AFTERWARDS, AT_ONCE, "calls after the batch over calls at once, time"),
    ]
    record.finish(_table(record.rows), _plot(record.rows))


def _model(scale: str) -> tuple[Any, Any]:
    if scale == "small":
        base = open_base("bundled:smollm2", dtype="bfloat16")
        return base.model, base.tokenizer
    torch.set_num_threads(1)
    return micro_model(MicroShape(hidden=128, layers=3, intermediate=256, context=512), 0), micro_tokenizer()


def _branch(model: Any, tokenizer: Any, setting: Setting, way: str) -> None:
    """Continue each trace from ``branches`` places in its last third, where anchors near the answer lie."""
    rng = Random(0)
    contexts = []
    for _ in range(setting.traces):
        trace = [rng.randrange(5, 100) for _ in range(setting.length)]
        contexts += [trace[: rng.randrange(2 * setting.length // 3, setting.length)] for _ in range(setting.branches)]
    writer = Writer(model, tokenizer, share=way == SHARED)
    writer.stops = []  # all rows have the same length
    list(writer.write(contexts, [setting.written] * len(contexts), list(range(len(contexts)))))


class _Scripted:
    """A writer that runs the model but returns scripted turns: a call, then an answer, some rows sooner than others."""

    def __init__(self, writer: Writer, form: CallFormat, setting: Setting, way: str) -> None:
        self.stops = writer.stops
        self._writer, self._setting, self._way = writer, setting, way
        end = form.tokenizer.eos_token_id
        self._call = [*form.tokenizer('<tool_call>{"name": "wait", "arguments": {}}</tool_call>')["input_ids"], end]
        self._answer = [*form.tokenizer("done")["input_ids"], end]
        self._turn = 0

    def write(self, contexts: Any, room: Any, seeds: Any) -> Iterator[tuple[int, list[int]]]:
        self._turn += 1
        said = self._call if self._turn == 1 else self._answer
        self._writer.stops = []
        lengths = [2 + index for index in range(len(contexts))]
        turns = self._writer.write(contexts, lengths, seeds)
        for index, _ in turns if self._way == AT_ONCE else list(turns):
            yield index, said


def _call(model: Any, tokenizer: Any, setting: Setting, way: str) -> None:
    """Hold conversations of one call and an answer. Turns differ in length, so that calls come one after another."""

    def wait() -> str:
        """Wait for something outside."""
        time.sleep(setting.seconds)
        return "ok"

    with Toolbox([wait], most_at_once=2) as toolbox:
        form = CallFormat(tokenizer, toolbox, instruction="")
        writer = _Scripted(Writer(model, tokenizer), form, setting, way)
        starts = [Start(form.prompt_ids(f"wait {index}"), index) for index in range(setting.rows)]
        play(writer, form, toolbox, starts, ConversationSettings(), None)


# -- what came of it -------------------------------------------------------------------------------------------------


def _seconds(rows: Sequence[dict[str, Any]], what: str, way: str) -> list[float]:
    return [row["seconds"] for row in rows if (row["what"], row["way"]) == (what, way)]


def _ratio(rows: Sequence[dict[str, Any]], what: str, slow: str, fast: str, name: str) -> Claim:
    ratios = [one / other for one, other in zip(_seconds(rows, what, slow), _seconds(rows, what, fast), strict=True)]
    return judged(name, statistics.median(ratios), min(ratios), max(ratios), "> 1")


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    lines = [
        [what, way, f"{statistics.median(_seconds(rows, what, way)):.3f}"]
        for what, way in dict.fromkeys((row["what"], row["way"]) for row in rows)
    ]
    return Table(["what", "way", "seconds, median"], lines)


def _plot(rows: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axis = figure.subplots()
    ways = list(dict.fromkeys((row["what"], row["way"]) for row in rows))
    axis.barh(
        [f"{what}: {way}" for what, way in ways],
        [statistics.median(_seconds(rows, *one)) for one in ways],
        color=["#0072B2", "#999999"] * 2,
    )
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    run(main)
