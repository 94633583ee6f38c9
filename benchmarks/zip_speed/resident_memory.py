"""Resident memory of packs, in child processes."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.common.record import Claim, judged
from benchmarks.common.runs import in_own_process
from benchmarks.memory import FLOOR, resident, touch
from benchmarks.zip_speed.models import INT8
from skillweave.base import Checkpoint, Sampling, open_base, open_tokenizer, resolve
from skillweave.progress import bar
from skillweave.weave import Weave, background_prompts, put_into_int8

MEMORY = {
    FLOOR: "imports, tokenizer, no weights",
    "base": "base, bfloat16",
    "packs": "base, bfloat16, 16 packs at 1/128",
    "int8": "base, int8",
    "int8-packs": "base, int8, 100 packs at 1/256",
}
LOADED = {"packs": (128, 16), "int8-packs": (256, 100)}
"""way -> (one over the ratio, the number of packs)"""
BATCH = 16


def measured(way: str, ref: str, work: Path) -> dict[str, Any]:
    """Bytes of the tensors; resident bytes after loading, after a batch of answers, and without the packs again."""
    if way == FLOOR:
        held = open_tokenizer(ref), Checkpoint(resolve(ref))
        loaded = resident()
        del held
        return {"tensors": 0, "loaded": loaded, "answered": loaded, "unloaded": loaded}
    names: list[str | None] = [None] * BATCH
    if way in LOADED:
        # From a folder, as a server opens it: a weave of packs in memory would hold the packs as they were zipped too.
        backbone = INT8 if way.startswith(INT8) else "dtype"
        weave = Weave.from_pretrained(work / f"weave-{way}", dtype="bfloat16", backbone=backbone, device="cpu")
        base = weave.base
        names = [f"p{number}" for number in range(BATCH)]
    else:
        base = open_base(ref, dtype="bfloat16", device="cpu")
        if way.startswith(INT8):
            put_into_int8(base)
        weave = Weave.of(base)
    touch(base.model)
    loaded = resident()
    weave.generate([background_prompts()[0]] * BATCH, names, Sampling(max_new_tokens=8))
    tensors, answered = weave.base_bytes + weave.resident_bytes, resident()
    for name in weave.loaded:
        weave.unload(name)
    return {"tensors": tensors, "loaded": loaded, "answered": answered, "unloaded": resident()}


def memory(work: Path, processes: int) -> dict[str, list[dict[str, Any]]]:
    """The results of :func:`measured` in fresh processes of each way, which take turns."""
    readings: dict[str, list[dict[str, Any]]] = {way: [] for way in MEMORY}
    with bar("processes", processes * len(MEMORY)) as advance:
        for _ in range(processes):
            for way in MEMORY:
                options = ("--measure", way, "--work", str(work))
                readings[way].append(in_own_process("benchmarks.zip_speed", *options, what=f"measures '{MEMORY[way]}'"))
                advance(note=MEMORY[way])
    return readings


def over_imports(readings: dict[str, list[dict[str, Any]]], way: str, when: str = "answered") -> list[float]:
    """Resident bytes of every process of a way after its answers, minus the median of the imports alone."""
    floor = statistics.median(reading["answered"]["rss"] for reading in readings[FLOOR])
    return [reading[when]["rss"] - floor for reading in readings[way]]


def memory_claims(readings: dict[str, list[dict[str, Any]]]) -> list[Claim]:
    """The claims on memory: ratios of medians, with the range over all pairs of processes."""
    made = []
    base = over_imports(readings, "base")
    for way, goal in (("packs", "<= 1.15"), ("int8-packs", "<= 1")):
        own = over_imports(readings, way)
        value = statistics.median(own) / statistics.median(base)
        claim = f"resident memory: {MEMORY[way]}, over that of the bfloat16 base"
        made.append(judged(claim, value, min(own) / max(base), max(own) / min(base), goal))
    return made


def memory_rows(readings: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row of the result for each way of memory."""
    base = statistics.median(over_imports(readings, "base"))
    return [
        {
            "what": "memory",
            "way": MEMORY[way],
            "tensor_bytes": taken[0]["tensors"],
            "over_imports": round(statistics.median(over_imports(readings, way))),
            "unloaded": round(statistics.median(over_imports(readings, way, "unloaded"))),
            "of_base": round(statistics.median(over_imports(readings, way)) / base, 4),
            "processes": taken,
        }
        for way, taken in readings.items()
    ]
