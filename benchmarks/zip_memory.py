"""Measure the memory and the time of a zip against the size of the model.

Claims: with a work folder, the memory that a zip takes beside the base stays nearly the same while the model grows ten
times; and its time is linear in the number of parameters.

The models are Llamas of one width and more and more layers, made in code; each tensor of the fine-tune differs from the
base's by noise. Each zip runs in a process of its own, to 1/64 of the delta in bf16, without calibration. Its memory is
the peak of its resident memory during the zip, above that before the zip, when the base is loaded. Its time is that of
the processor, summed over threads, so that other work on the machine matters less. "In memory" is the same zip without
a work folder, of all models but the largest: all decompositions are then in memory.

    python -m benchmarks.zip_memory             models of 0.1, 0.4 and 1 GB; ten minutes on two cores
    python -m benchmarks.zip_memory --quick     two micro models, less than a minute
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.common.record import Record, arguments, judged, run
from benchmarks.common.runs import in_own_process
from benchmarks.memory import resident, touch
from skillweave.base import open_base
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.disk import check_room
from skillweave.micro import MicroShape, micro_model, micro_tokenizer
from skillweave.progress import bar
from skillweave.report import Table
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.units import human_bytes, human_seconds

NAME = "zip_memory"
RATIO = 1 / 64
WIDE = MicroShape(hidden=512, heads=8, kv_heads=4, intermediate=1408)
NARROW = MicroShape(hidden=256, heads=4, kv_heads=2, intermediate=512)
LAYERS = (17, 68, 170)
"""Layers of 6 MB in bfloat16 each: models of 0.1, 0.4 and 1 GB."""
ON_DISK = "work folder"
IN_MEMORY = "in memory"
WAYS = (ON_DISK, IN_MEMORY)
COLOURS = {ON_DISK: "#009E73", IN_MEMORY: "#0072B2"}


def main(argv: Sequence[str]) -> None:
    """Run the benchmark; with ``--measure``, run one of its measured processes."""
    parser = arguments(__doc__, ["small"])
    parser.add_argument("--measure", choices=WAYS, help="be one measured process (the benchmark calls itself so)")
    parser.add_argument("--models", type=Path, help="with --measure: the folder of the base and of the fine-tune")
    options = parser.parse_args(argv)
    if not Path("/proc/self/clear_refs").exists():
        raise UserError("the peak of resident memory is read from /proc, which this system does not have: use Linux")
    if options.measure:
        print(json.dumps(measured(options.measure, options.models)))
        return
    record = Record.begin(NAME, options, argv, seeds=[0])
    shape, layers = (NARROW, (2, 4)) if options.quick else (WIDE, LAYERS)
    with tempfile.TemporaryDirectory() as temporary, bar("zips", len(layers) * len(WAYS) - 1) as advance:
        for count in layers:
            folder = Path(temporary) / str(count)
            make_models(folder, shape.model_copy(update={"layers": count}))
            for way in WAYS if count < layers[-1] else (ON_DISK,):
                record.rows.append({"layers": count, "way": way} | child(way, folder))
                advance(note=f"{human_bytes(record.rows[-1]['model_bytes'])}, {way}")
    first, last = record.rows[0], record.rows[-1]
    growth = last["model_bytes"] / first["model_bytes"]
    value = last["peak_over_base"] / first["peak_over_base"]
    claim = f"memory of a zip with a work folder, of a model {growth:.0f} times larger over that of the smallest"
    record.claims.append(judged(claim, value, value, value, "<= 1.5"))
    value = last["processor_seconds"] / first["processor_seconds"] / growth
    claim = f"processor time for each byte, of a model {growth:.0f} times larger over that of the smallest"
    record.claims.append(judged(claim, value, value, value, "<= 1.25"))
    record.finish(table(record.rows), plot(record.rows))


def make_models(folder: Path, shape: MicroShape) -> None:
    """Write a base and a fine-tune in bfloat16, whose every weight differs by noise of a hundredth of its size."""
    model = micro_model(shape, seed=0).bfloat16()
    check_room(folder, 2 * sum(parameter.nbytes for parameter in model.parameters()), "the two models")
    generator = torch.Generator().manual_seed(1)
    for name in ("base", "tuned"):
        model.save_pretrained(folder / name)
        micro_tokenizer().save_pretrained(folder / name)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.bfloat16)
            parameter.data += 0.01 * parameter.data.std() * noise


def measured(way: str, models: Path) -> dict[str, Any]:
    """Zip the fine-tune in this process; return the bytes at the peak above those before, the time, and sizes."""
    base = open_base(models / "base", dtype="bfloat16", device="cpu")
    delta = Delta.between(models / "base", models / "tuned")
    touch(base.model)
    before = resident()["rss"]
    Path("/proc/self/clear_refs").write_text("5")  # begins a new peak (man 5 proc)
    with tempfile.TemporaryDirectory(dir=models) as temporary:
        work = Path(temporary) / "work" if way == ON_DISK else None
        began = time.process_time()
        pack = zip_delta(delta, base, None, ZipConfig(ratio=RATIO, allow_left_out=True), name="zip", work=work)
        seconds = time.process_time() - began
        stored = sum(file.stat().st_size for file in work.rglob("*") if file.is_file()) if work is not None else 0
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "model_bytes": sum(parameter.nbytes for parameter in base.model.parameters()),
        "pack_bytes": pack.nbytes,
        "work_bytes": stored,
        "base_resident": before,
        "peak_over_base": 1024 * int(peak.split()[1]) - before,
        "processor_seconds": round(seconds, 2),
    }


def child(way: str, models: Path) -> dict[str, Any]:
    """The result of :func:`measured` in a process of its own."""
    options = ("--measure", way, "--models", str(models))
    return in_own_process("benchmarks.zip_memory", *options, what=f"zips '{way}'")


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table of peak memory and time by model size and way."""
    header = ["model", "decompositions", "pack", "work folder", "memory beside the base", "processor time"]
    lines = [
        [
            human_bytes(row["model_bytes"]),
            row["way"],
            human_bytes(row["pack_bytes"]),
            human_bytes(row["work_bytes"]) if row["way"] == ON_DISK else "-",
            human_bytes(row["peak_over_base"]),
            human_seconds(row["processor_seconds"]),
        ]
        for row in rows
    ]
    return Table(header, lines)


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of peak memory and of time against the bytes of the model."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    memory, seconds = figure.subplots(1, 2)
    for way in WAYS:
        own = [row for row in rows if row["way"] == way]
        size = [row["model_bytes"] / 1e6 for row in own]
        memory.plot(size, [row["peak_over_base"] / 1e6 for row in own], "o-", color=COLOURS[way], label=way)
        seconds.plot(size, [row["processor_seconds"] for row in own], "o-", color=COLOURS[way], label=way)
    memory.set_ylabel("memory beside the base, MB")
    seconds.set_ylabel("processor seconds")
    for axes in (memory, seconds):
        axes.set_xlabel("model in bfloat16, MB")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    memory.legend(frameon=False)
    return figure


if __name__ == "__main__":
    run(main)
