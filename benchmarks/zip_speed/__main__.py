"""Measure what packs cost in time and memory: decoding and prompts of mixed batches, against the base and against PEFT.

A batch has one row, or four, for each of 1, 2, 4, 8 and 16 packs at 1/128 of the delta's bytes. The packs are made up:
a random delta of low rank on all linear layers is zipped once, and the other packs are the same with the rows of every
A and the columns of every B in another order. So ranks, bytes and operations are those of a real pack; the answers mean
nothing.

Ways: the bare base in bfloat16, in float32 and with int8 layers; the same three with packs; PEFT's mixed-adapter batch
(``adapter_names``) with LoRA of the same rank in each layer; and full models one after another, each with its own rows
(two copies of the base take turns, so that no weights are left in a cache). The ways take turns in every repeat.

Claims are medians over repeats of ratios of seconds, with a bootstrap interval over repeats. Goals: 8 packs on the int8
backbone take at most the time of the bare base in its fastest dtype, 8 packs on a plain backbone at most 1.3 times that
of the bare base in the same dtype, less than PEFT's batch at every size, and a quarter of 8 full models one after
another. The floor of a decoding step is the time in which its bytes can be read: those of the weights, of the packs in
use and of the cache, at the bandwidth that reading a large tensor reaches.

Memory is resident memory of child processes (see benchmarks/memory.py), after a batch of 16 answers, and after all
packs are unloaded. Goals: 16 packs at 1/128 on the bfloat16 base take at most 1.15 times the base, and 100 packs at
1/256 on the int8 backbone at most 1.0 times the bfloat16 base.

    python -m benchmarks.zip_speed                      SmolLM2, about twenty minutes on two cores
    python -m benchmarks.zip_speed --quick              a micro model, half a minute
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common.record import Record, arguments, positive, run
from benchmarks.zip_speed.models import MICRO, Served, base_ref, made_up_pack, shuffled, write_micro
from benchmarks.zip_speed.resident_memory import LOADED, MEMORY, measured, memory, memory_claims, memory_rows
from benchmarks.zip_speed.show import claims, plot, rows, table
from benchmarks.zip_speed.timing import DECODE, PREFILL, Size, read_bandwidth, take_turns
from skillweave.base import open_base
from skillweave.pack import Skillpack
from skillweave.weave import Weave

NAME = "zip_speed"
PACKS = (1, 2, 4, 8, 16)
PER_PACK = (1, 4)
MEMORY_STAGE = "memory"
STAGES = (DECODE, PREFILL, MEMORY_STAGE)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark; with ``--measure``, run one of its measured processes."""
    parser = arguments(__doc__, ["small"])
    parser.add_argument("--repeats", type=positive, default=11, help="timed turns of each way (default: %(default)s)")
    parser.add_argument("--processes", type=positive, default=3, help="for each way of memory (default: %(default)s)")
    parser.add_argument("--prompt", type=positive, default=32, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument("--measure", choices=list(MEMORY), metavar="WAY", help="one measured process of this benchmark")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where packs are kept, and found again")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="what to measure (default: all)")
    parser.add_argument("--packs", nargs="+", type=positive, default=PACKS, help="in a batch (default: %(default)s)")
    parser.add_argument(
        "--rows-each", nargs="+", type=positive, default=PER_PACK, help="rows of each pack (default: %(default)s)"
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor time of one thread, not time: for a machine that has other work",
    )
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(measured(options.measure, base_ref(options.work), options.work)))
        return
    sizes = [(packs, per) for per in options.rows_each for packs in options.packs]
    if options.quick:
        options.repeats, options.processes, sizes = 2, 1, [(1, 1), (8, 1), (2, 4)]
    if options.cpu_time:
        torch.set_num_threads(1)
    record = Record.begin(NAME, options, argv, seeds=[0])
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.quick:
            write_micro(work / MICRO)
        for inverse in sorted({inverse for inverse, _ in LOADED.values()}):
            if not (work / str(inverse)).exists():
                # A micro model has no room for so small a pack.
                made_up_pack(base_ref(work), 8 if options.quick else inverse).save_pretrained(work / str(inverse))
        if timed := [stage for stage in (DECODE, PREFILL) if stage in options.stages]:
            measure_time(record, work, timed, sizes, options)
        if MEMORY_STAGE in options.stages:
            for way, (inverse, count) in LOADED.items():
                if not (work / f"weave-{way}").exists():
                    pack = Skillpack.from_pretrained(work / str(inverse))
                    packs = {f"p{seed}": shuffled(pack, seed) for seed in range(count)}
                    Weave.write(work / f"weave-{way}", open_base(base_ref(work)), packs)
            readings = memory(work, options.processes)
            record.rows += memory_rows(readings)
            record.claims += memory_claims(readings)
    record.finish(table(record.rows), plot(record.rows))


def measure_time(
    record: Record, work: Path, stages: Sequence[str], sizes: Sequence[tuple[int, int]], options: argparse.Namespace
) -> None:
    """Add the rows and claims on time to the record."""
    clock = time.thread_time if options.cpu_time else time.perf_counter
    pack = Skillpack.from_pretrained(work / "128")
    served = Served(base_ref(work), pack, max(packs for packs, _ in sizes))
    bandwidth = read_bandwidth(clock)
    record.rows.append({"what": "bandwidth", "bytes_per_second": round(bandwidth), "cpu_time": options.cpu_time})
    seconds = {}
    for stage in stages:
        for packs, per in sizes:
            size = Size(stage, packs, per, options.prompt)
            taken = take_turns(served, size, options.repeats, clock)
            floors = served.floors(packs, per, bandwidth) if stage == DECODE else {}
            record.rows += rows(size, taken, floors)
            seconds[size] = taken
    record.claims += claims(seconds)


if __name__ == "__main__":
    run(main)
