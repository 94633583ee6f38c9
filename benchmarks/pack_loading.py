"""Measure how long a cold pack takes to load beside a running engine, and how clearly its proof tells it from others.

Claims: after its first load, a pack of 1/64 of its delta is read from disk, checked and put into the model within 20 ms
at the 95th percentile; unloading it gives its bytes back, and many loads make the process grow by at most a MiB; the
right pack is within a third of the distance of a pack that does nothing, in every form of the base; and every other
pack of the weave is refused.

Each delta of a build is zipped to 1/64. "First" is the load in which the pack is decoded, proven and kept as a copy on
disk; later loads hash the pack's files and read the copy. "Decoded" are loads without a copy. The files are in the
system's cache. Of a load, only the jobs between steps keep the engine waiting: for a first load two, what the base says
about the probe's text and ``put``; later ``put`` alone. Processor time is given beside the time on the clock, so that
other work on the machine can be told apart; where there is such work, run it with ``nice -n -15``.

    python -m benchmarks.pack_loading             the packs of runs/demo, base in bfloat16; ten minutes on two cores
    python -m benchmarks.pack_loading --quick     small made-up packs, 5 loads each
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.record import Record, arguments, judged, run
from benchmarks.common.skills import add_weave_option, built
from skillweave.base import Base, open_base
from skillweave.pack import Skillpack
from skillweave.report import Table
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.units import human_bytes
from skillweave.weave import PackedModel, Weave, put_into_int8
from skillweave.weave.prove import distance

RATIO = 1 / 64
LOADS, QUICK_LOADS = 50, 5
FORMS = ("float32", "bfloat16", "int8")


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["small"])
    add_weave_option(parser)
    options = parser.parse_args(argv)
    record = Record.begin("pack_loading", options, argv, seeds=[0])
    with built(options) as weave, tempfile.TemporaryDirectory() as temporary:
        folders = {skill.name: Path(temporary) / skill.name for skill in weave.skills}
        base = open_base(weave.base_ref, dtype="float32")
        for skill in weave.skills:
            config = ZipConfig(ratio=RATIO, allow_left_out=True)
            zip_delta(skill.delta, base, None, config, name=skill.name).save_pretrained(folders[skill.name])
        packs = {name: Skillpack.from_pretrained(folder) for name, folder in folders.items()}
        for form in FORMS:
            proofs(record.rows, packs, served(weave.base_ref, form), form)
        loads(record.rows, folders, served(weave.base_ref, "bfloat16"), QUICK_LOADS if options.quick else LOADS)
    claims(record)
    record.finish(table(record.rows), plot(record.rows))


def served(ref: str, form: str) -> Base:
    """The base in one of :data:`FORMS`."""
    base = open_base(ref, dtype="bfloat16" if form == "int8" else form)
    return put_into_int8(base) if form == "int8" else base


def proofs(rows: list[dict[str, Any]], packs: dict[str, Skillpack], base: Base, form: str) -> None:
    """Add one row for each pack and each card: the distance of the pack from the card's probe, and its limit."""
    packed = PackedModel(base.model)
    for name, pack in packs.items():
        packed.add(packed.prepare(name, pack))
    for name in packs:
        for card, other in packs.items():
            proof = distance(packed, name, other.card.probe)
            rows.append({"base": form, "pack": name, "card": card, "distance": proof.distance, "limit": proof.allowed})


def loads(rows: list[dict[str, Any]], folders: dict[str, Path], base: Base, count: int) -> None:
    """Add one row for each pack: its first load, and the quantiles of ``count`` later ones, in milliseconds."""
    weave = Weave.of(base, unpacked_packs=None)
    weave.packed_model.watch()
    for folder in folders.values():
        name = weave.shelf.add(folder)
        decoded = [one_load(weave, name, keep=False) for _ in range(count)]
        first = one_load(weave, name, keep=True)
        before = resident_memory()
        later = [one_load(weave, name, keep=True) for _ in range(count)]
        row = {"pack": name, "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())}
        row |= {"first": decoded[0], "keeping": first["load"], "grown": resident_memory() - before}
        for key in ("load", "put", "processor"):
            row |= {f"{key}_p50": quantile(later, key, 0.5), f"{key}_p95": quantile(later, key, 0.95)}
        row |= {"decoded_p50": quantile(decoded[1:], "load", 0.5)}
        row |= {"decoded_processor_p50": quantile(decoded[1:], "processor", 0.5)}
        rows.append(row | {"freed": float(np.median([one["freed"] for one in later]))})


def one_load(weave: Weave, name: str, *, keep: bool) -> dict[str, float]:
    """Load and unload a pack: milliseconds by part, and the share of its bytes that the process gives back."""
    began, processor = time.perf_counter(), time.process_time()
    read = weave.shelf.read(name, keep=keep)
    done, asked = time.perf_counter(), None
    if weave.proofs.must_prove(read):
        asked = weave.proofs.base_says(read)
    middle = time.perf_counter()
    weave.put(read, asked)
    end, spent = time.perf_counter(), time.process_time() - processor
    size = weave.packed_model.held_bytes(name)
    del read
    before = resident_memory()
    weave.unload(name)
    freed = (before - resident_memory()) / size
    parts = {"read": done - began, "base": middle - done, "put": end - middle, "load": end - began, "processor": spent}
    return {key: 1000 * value for key, value in parts.items()} | {"freed": freed}


def resident_memory() -> int:
    """The bytes of memory that the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def quantile(measured: Sequence[dict[str, float]], key: str, share: float) -> float:
    """A quantile of one part of many loads."""
    return float(np.quantile([one[key] for one in measured], share))


def claims(record: Record) -> None:
    """Judge the claims; the intervals are the ranges over packs."""
    loaded = [row for row in record.rows if "load_p95" in row]
    slow = [row["load_p95"] for row in loaded]
    claim = "milliseconds of a cold load after the first, at the 95th percentile (range over packs)"
    record.claims.append(judged(claim, float(np.median(slow)), min(slow), max(slow), "<= 20"))
    busy = [row["processor_p95"] for row in loaded]
    claim = "milliseconds of processor time of such a load, at the 95th percentile (range over packs)"
    record.claims.append(judged(claim, float(np.median(busy)), min(busy), max(busy), "<= 20"))
    freed = [row["freed"] for row in loaded]
    claim = "share of a pack's bytes that the process gives back when it is unloaded (range over packs)"
    record.claims.append(judged(claim, float(np.median(freed)), min(freed), max(freed), ">= 0.95"))
    grown = [row["grown"] / 2**20 for row in loaded]
    claim = "MiB by which the process grew over all later loads of one pack (range over packs)"
    record.claims.append(judged(claim, float(np.median(grown)), min(grown), max(grown), "<= 1"))
    own = [row["distance"] for row in record.rows if "card" in row and row["card"] == row["pack"]]
    claim = "distance of the right pack from its record, where a pack that does nothing has 1 (range)"
    record.claims.append(judged(claim, float(np.median(own)), min(own), max(own), "<= 0.33"))
    others = [row["distance"] / row["limit"] for row in record.rows if "card" in row and row["card"] != row["pack"]]
    claim = "distance of a wrong pack over the limit (range)"
    record.claims.append(judged(claim, float(np.median(others)), min(others), max(others), "> 1"))


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table of the loads."""
    header = ["pack", "on disk", "first: read", "base", "put", "decoded p50", "load p50", "load p95", "put p95"]
    lines = []
    for row in rows:
        if "load_p95" in row:
            first = [row["first"][part] for part in ("read", "base", "put")]
            later = [row[part] for part in ("decoded_p50", "load_p50", "load_p95", "put_p95")]
            processor = [row[part] for part in ("decoded_processor_p50", "processor_p50", "processor_p95")]
            times = [f"{value:.1f} ms" for value in (*first, *later, *processor)]
            lines.append([row["pack"], human_bytes(row["bytes"]), *times])
    return Table([*header, "decoded, processor p50", "load, processor p50", "processor p95"], lines)


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of the distances of right and wrong packs, by the form of the base."""
    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.subplots()
    for right, colour, label in ((True, "#009E73", "the right pack"), (False, "#D55E00", "another pack")):
        own = [row for row in rows if "card" in row and (row["card"] == row["pack"]) == right]
        axes.plot([row["base"] for row in own], [row["distance"] for row in own], "o", color=colour, label=label)
    axes.set_ylabel("distance from the record")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    run(main)
