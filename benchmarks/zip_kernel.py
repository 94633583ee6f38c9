"""Compare the GPU kernel for packs with the torch path: one layer of a group, for batches of mixed packs.

Claim: with 8 packs in a batch, the kernel takes less time than the torch path, for a decoding step and for prompts.

Each pack changes the three modules q, k and v (hidden -> hidden, and two of a quarter) by factors of the given rank.
The two ways take turns; a time is the median of one batch through all three modules, from an event before to an event
after it. Before anything is timed, both must give the same numbers, within 1% of the largest. The interval is a
bootstrap over turns. It needs a GPU and Triton.

    python -m benchmarks.zip_kernel             a minute on a GPU
    python -m benchmarks.zip_kernel --quick     fewer turns
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.common.record import Record, arguments, bootstrap, judged, positive, run
from skillweave.errors import UserError
from skillweave.pack import LowRank
from skillweave.report import Table
from skillweave.weave.factors import Factors
from skillweave.weave.kernel_group import KernelGroup, takes_kernel
from skillweave.weave.linear import add_to_rows, into_rank, out_of_rank
from skillweave.weave.stack import GroupStack, RowPacks
from skillweave.weave.stack import segments as segments_of

NAME = "zip_kernel"
TORCH = "torch"
KERNEL = "kernel"
COLOURS = {TORCH: "#0072B2", KERNEL: "#009E73"}
PACKS = (1, 2, 4, 8, 16)
WIDTHS = {"a decoding step": 1, "a prompt of 512 tokens": 512}
JUDGED = 8
DTYPE = torch.bfloat16


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["small"])
    parser.add_argument("--hidden", type=positive, default=2048, help="width of the layer (default: %(default)s)")
    parser.add_argument("--rank", type=positive, default=64, help="rank of the factors (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=100, help="timed turns of each way (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.quick:
        options.repeats = 5
    if not torch.cuda.is_available() or not takes_kernel(torch.zeros(1, device="cuda")):
        raise UserError("the kernel runs on a GPU with CUDA, and needs Triton: run this benchmark on such a machine")
    record = Record.begin(NAME, options, argv, seeds=[0])
    for what, width in WIDTHS.items():
        for packs in PACKS:
            seconds = measure(made_stack(packs, options.hidden, options.rank), packs, width, options.repeats)
            taken = {way: round(1e6 * statistics.median(own), 1) for way, own in seconds.items()}
            record.rows.append({"what": what, "packs": packs, "microseconds": taken})
            if packs == JUDGED:
                ratios = np.array(seconds[KERNEL]) / np.array(seconds[TORCH])
                low, high = bootstrap(ratios, lambda picked: np.median(picked, axis=1))
                claim = f"{what}, {packs} packs: time of the kernel over that of torch"
                record.claims.append(judged(claim, float(np.median(ratios)), low, high, "< 1"))
    record.finish(table(record.rows), plot(record.rows))


def made_stack(packs: int, hidden: int, rank: int) -> GroupStack:
    """A group of q, k and v on the GPU, with factors of random codes and scales."""
    generator = torch.Generator().manual_seed(0)

    def factors(out: int) -> Factors:
        parts = LowRank(
            A=torch.randint(-7, 8, (out, rank), generator=generator, dtype=torch.int8),
            B=torch.randint(-7, 8, (rank, hidden), generator=generator, dtype=torch.int8),
            A_scale=(0.01 * torch.rand(out, generator=generator)).half(),
            B_scale=(0.01 * torch.rand(rank, generator=generator)).half(),
            smooth=None,
        )
        return Factors.of(parts, torch.device("cuda"))

    stack = GroupStack()
    for number in range(packs):
        stack.add(str(number), {"q": factors(hidden), "k": factors(hidden // 4), "v": factors(hidden // 4)}, None)
    return stack


def measure(stack: GroupStack, packs: int, width: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each turn of both ways, for a batch of one row for each pack."""
    names: list[str | None] = [str(number) for number in range(packs)]
    factors = stack.factors["0"]
    x = torch.randn(packs, width, factors["q"].inner, generator=torch.Generator().manual_seed(1)).to("cuda", DTYPE)
    kernel = KernelGroup(stack, RowPacks(names))
    # As the packed model does: side by side for few tokens, else pack by pack.
    segments = segments_of(stack, RowPacks(names), stacked=packs > 1 and packs * width <= 128)

    def zeros() -> dict[str, torch.Tensor]:
        return {name: torch.zeros(packs, width, own.out, dtype=DTYPE, device="cuda") for name, own in factors.items()}

    def by_torch() -> dict[str, torch.Tensor]:
        made = zeros()
        for segment in segments:
            hidden = into_rank(x, segment)
            for module, output in made.items():
                add_to_rows(output, segment.rows, out_of_rank(hidden, segment.parts[module]))
        return made

    def by_kernel() -> dict[str, torch.Tensor]:
        made, hidden = zeros(), kernel.into_rank(x)
        for module, output in made.items():
            kernel.add(module, hidden, output)
        return made

    runs: dict[str, Callable[[], dict[str, torch.Tensor]]] = {TORCH: by_torch, KERNEL: by_kernel}
    for one, other in zip(by_torch().values(), by_kernel().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.01 * float(one.abs().max()))
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(repeats):
        for way, current in runs.items():
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            began.record()
            current()
            ended.record()
            torch.cuda.synchronize()
            seconds[way].append(began.elapsed_time(ended) / 1e3)
    return seconds


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table of microseconds by packs and way."""
    header = ["batch", "packs", "torch, us", "kernel, us", "ratio"]
    lines = []
    for row in rows:
        taken = row["microseconds"]
        ratio = f"{taken[KERNEL] / taken[TORCH]:.2f}"
        lines.append([row["what"], str(row["packs"]), f"{taken[TORCH]:.0f}", f"{taken[KERNEL]:.0f}", ratio])
    return Table(header, lines)


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of microseconds against the number of packs."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    for axes, what in zip(figure.subplots(1, len(WIDTHS)), WIDTHS, strict=True):
        own = [row for row in rows if row["what"] == what]
        for way, colour in COLOURS.items():
            axes.plot([row["packs"] for row in own], [row["microseconds"][way] for row in own], "o-", color=colour)
        axes.set_title(what, fontsize=9)
        axes.set_xlabel("packs in the batch")
        axes.set_ylabel("microseconds")
        axes.set_ylim(bottom=0)
        axes.legend(COLOURS, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    run(main)
