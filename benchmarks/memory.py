"""Compare the memory of a weave with that of its base and of separate models.

Claim: with three packs loaded, a weave's resident memory is at most 1.25 times the base's.

Each way of serving is measured in a process of its own. Its resident memory (from /proc/self/status) is counted above
that of the same process with everything imported, the tokenizer read and the model built without weights. First all
weights are read once, because pages of a mapped file count only after they were touched. Then each model (or pack)
answers a prompt, and the memory is read again. Before each reading, freed memory is handed back to the system.
"Separate" is one process with a full model for each skill (three processes would import everything three times). The
table also has the bytes of the tensors; the rows of the JSON separate mapped pages from the process's own. The claims
on resident memory are ratios of medians over processes, with the range over all pairs of processes.

    python -m benchmarks.memory --weave runs/demo             after `make demo`; about three minutes on two cores
    python -m benchmarks.memory --quick                       a made-up weave, less than a minute
"""

from __future__ import annotations

import gc
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.record import Record, arguments, judged, positive, run
from benchmarks.common.runs import in_own_process
from benchmarks.common.skills import Built, add_weave_option, built, find
from skillweave.base import Checkpoint, Sampling, generate, open_base, open_tokenizer, resolve
from skillweave.base.allocator import release_freed_memory
from skillweave.errors import UserError
from skillweave.progress import bar
from skillweave.report import Table
from skillweave.units import human_bytes
from skillweave.weave import Weave

NAME = "memory"
FLOOR = "imports"
BASE = "base"
WEAVE = "weave"
SEPARATE = "separate"
WAYS = {
    FLOOR: "imports, tokenizer, no weights",
    BASE: "base alone",
    WEAVE: "weave, all packs",
    SEPARATE: "separate models",
}
COLOURS = {BASE: "#999999", WEAVE: "#009E73", SEPARATE: "#0072B2"}
DTYPE = "bfloat16"
MOST = 1.25


def main(argv: Sequence[str]) -> None:
    """Run the benchmark; with ``--measure``, run one of its measured processes."""
    parser = arguments(__doc__, ["small"])
    add_weave_option(parser)
    parser.add_argument("--repeats", type=positive, default=5, help="processes for each way (default: %(default)s)")
    parser.add_argument("--measure", choices=WAYS, help="be one measured process (the benchmark calls itself so)")
    options = parser.parse_args(argv)
    if not Path("/proc/self/status").exists():
        raise UserError(
            "resident memory is read from /proc/self/status, which this system does not have: run it on Linux"
        )
    if options.measure:
        print(json.dumps(measured(options.measure, find(options.weave))))
        return
    record = Record.begin(NAME, options, argv, seeds=[])
    with built(options) as weave:
        readings = take_turns(weave, 1 if options.quick else options.repeats)
        packs = len(weave.skills)
    record.rows = rows(readings)
    for stage in ("loaded", "answered"):
        over_floor = {way: above_floor(readings, way, stage) for way in (BASE, WEAVE)}
        # The smallest and the largest ratio of any pair of processes.
        low = min(over_floor[WEAVE]) / max(over_floor[BASE])
        high = max(over_floor[WEAVE]) / min(over_floor[BASE])
        value = statistics.median(over_floor[WEAVE]) / statistics.median(over_floor[BASE])
        claim = f"resident memory with {packs} packs over that of the base, {stage}"
        record.claims.append(judged(claim, value, low, high, f"<= {MOST}"))
    exact = readings[WEAVE][0]["tensors"] / readings[BASE][0]["tensors"]
    claim = f"bytes of the tensors with {packs} packs over those of the base"
    record.claims.append(judged(claim, exact, exact, exact, f"<= {MOST}"))
    record.finish(table(record.rows), plot(record.rows))


# -- one measured process --------------------------------------------------------------------------------------------


def measured(way: str, weave: Built) -> dict[str, Any]:
    """Bytes of the tensors, and resident bytes after loading and after every model or pack has answered."""
    # Every way reads the same prompts, whether it answers them or not.
    prompts = {skill.name: skill.task().split("test")[0].prompt for skill in weave.skills}
    short = Sampling(max_new_tokens=8)
    if way == FLOOR:
        held = open_tokenizer(weave.base_ref), Checkpoint(resolve(weave.base_ref))  # the model's class, no weights
        loaded = resident()
        del held
        return {"tensors": 0, "loaded": loaded, "answered": loaded}
    if way == WEAVE:
        woven = Weave.from_pretrained(weave.folder, dtype=DTYPE, device="cpu")
        touch(woven.base.model)
        loaded = resident()
        woven.generate([*prompts.values()], [*prompts], short)
        return {"tensors": woven.base_bytes + woven.resident_bytes, "loaded": loaded, "answered": resident()}
    tokenizer = open_tokenizer(weave.base_ref)
    if way == BASE:
        models = [open_base(weave.base_ref, dtype=DTYPE, device="cpu").model]
    else:
        models = [weave.specialist(skill, DTYPE, "cpu").model for skill in weave.skills]
    for model in models:
        touch(model)
    loaded = resident()
    for at, prompt in enumerate(prompts.values()):
        generate(models[at % len(models)], tokenizer, [prompt], short)
    tensors = sum(tensor.nbytes for model in models for tensor in (*model.parameters(), *model.buffers()))
    return {"tensors": tensors, "loaded": loaded, "answered": resident()}


def touch(model: Any) -> None:
    """Read every weight once."""
    for parameter in model.parameters():
        float(parameter.detach().sum())


def resident() -> dict[str, int]:
    """Resident bytes of this process: all, its own (``anon``) and mapped from files (``file``)."""
    gc.collect()
    release_freed_memory()  # glibc keeps up to 64 MB of it, depending on where it lies
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {key: value.split()[0] for key, _, value in (line.partition(":") for line in lines) if value.split()}
    names = {"rss": "VmRSS", "anon": "RssAnon", "file": "RssFile"}
    return {name: 1024 * int(fields[key]) for name, key in names.items()}


# -- all of them -----------------------------------------------------------------------------------------------------


def take_turns(weave: Built, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """The results of :func:`measured` in ``repeats`` fresh processes of each way."""
    readings: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with bar("processes", repeats * len(WAYS)) as advance:
        for _ in range(repeats):
            for way in WAYS:
                options = ("--measure", way, "--weave", str(weave.folder))
                readings[way].append(in_own_process("benchmarks.memory", *options, what=f"measures '{WAYS[way]}'"))
                advance(note=WAYS[way])
    return readings


def above_floor(readings: dict[str, list[dict[str, Any]]], way: str, stage: str) -> list[int]:
    """Resident bytes of every process of a way, minus the median of the floor's."""
    floor = statistics.median(reading[stage]["rss"] for reading in readings[FLOOR])
    return [round(reading[stage]["rss"] - floor) for reading in readings[way]]


def rows(readings: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row of the result for each way."""
    base = {stage: statistics.median(above_floor(readings, BASE, stage)) for stage in ("loaded", "answered")}
    return [
        {
            "way": WAYS[way],
            "dtype": DTYPE,
            "tensor_bytes": taken[0]["tensors"],
            "over_imports": {stage: round(statistics.median(above_floor(readings, way, stage))) for stage in base},
            "of_base": {
                stage: round(statistics.median(above_floor(readings, way, stage)) / base[stage], 4) for stage in base
            },
            "processes": taken,
        }
        for way, taken in readings.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table of bytes by way, each also as a multiple of the base's."""
    header = ["in memory", "tensors", "resident, loaded", "resident, answered", "over imports", "of the base"]
    lines = []
    for row in rows:
        rss = [
            statistics.median(process[stage]["rss"] for process in row["processes"]) for stage in ("loaded", "answered")
        ]
        floor = row["way"] == WAYS[FLOOR]
        lines.append(
            [
                row["way"],
                "-" if floor else human_bytes(row["tensor_bytes"]),
                *map(human_bytes, rss),
                "-" if floor else human_bytes(row["over_imports"]["loaded"]),
                "-" if floor else f"{row['of_base']['loaded']:.2f}x",
            ]
        )
    return Table(header, lines)


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of resident megabytes above the imports."""
    figure = Figure(figsize=(5.5, 2.0), layout="constrained")
    axes = figure.subplots()
    shown = [row for row in rows if row["way"] != WAYS[FLOOR]]
    values = [row["over_imports"]["loaded"] / 1e6 for row in shown]
    drawn = axes.barh([row["way"] for row in shown], values, color=list(COLOURS.values()))
    labels = [f"{value:.0f} MB ({row['of_base']['loaded']:.2f}x)" for value, row in zip(values, shown, strict=True)]
    axes.bar_label(drawn, labels, padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(values))
    axes.set_xlabel("resident memory over the imports, MB")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    run(main)
