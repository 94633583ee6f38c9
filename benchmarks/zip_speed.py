"""Measure what packs cost in time and memory: decoding and prompts of mixed batches, against the base and against PEFT.

A batch has one row, or four, for each of 1, 2, 4, 8 and 16 packs at 1/128 of the delta's bytes. The packs are made up:
a random delta of low rank on all linear layers is zipped once, and the other packs are the same with the numbers of
every tensor shuffled. So ranks, bytes and operations are those of a real pack; the answers mean nothing.

Ways: the bare base in bfloat16, in float32 and with int8 layers; the same three with packs; PEFT's mixed-adapter batch
(``adapter_names``) with LoRA of the same rank in each layer; and full models one after another, each with its own rows
(two copies of the base take turns, so that no weights are left in a cache). The ways take turns in every repeat.

Claims are medians over repeats of ratios of seconds, with a bootstrap interval over repeats. Goals: 8 packs on the int8
backbone take at most the time of the bare base in its fastest dtype, 8 packs on a plain backbone at most 1.3 times that
of the bare base in the same dtype, less than PEFT's batch at every size, and a quarter of 8 full models one after
another. The floor of a decoding step is the time in which its bytes can be read: those of the weights, of the packs in
use and of the cache, at the bandwidth that reading a large tensor reaches.

Memory is resident memory of child processes (see benchmarks/memory.py), after a batch of 16 answers. Goals: 16 packs at
1/128 on the bfloat16 base take at most 1.15 times the base, and 100 packs at 1/256 on the int8 backbone at most 1.0
times the bfloat16 base.

    python -m benchmarks.zip_speed                      SmolLM2, about twenty minutes on two cores
    python -m benchmarks.zip_speed --quick              a micro model, half a minute
"""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.common.record import RESULTS, Claim, Record, arguments, bootstrap, judged, positive, run
from benchmarks.memory import FLOOR, resident, touch
from skillweave.base import Base, Checkpoint, Sampling, open_base, open_tokenizer, resolve
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.micro import MicroShape, micro_model, micro_tokenizer
from skillweave.pack import LowRankEntry, Skillpack
from skillweave.progress import bar
from skillweave.report import Table
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.units import human_bytes
from skillweave.weave import Weave, background_prompts, put_into_int8

NAME = "zip_speed"
BASE_REF = "bundled:smollm2"
MICRO = "micro"
PACKS = (1, 2, 4, 8, 16)
PER_PACK = (1, 4)
GOAL_PACKS = 8
DECODE, PREFILL = "decode", "prompt"
STEPS = 4
"""Decoding steps in one timed turn."""
CONTEXT = 64
"""Tokens in the cache before the first of them."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
INT8 = "int8"
TURNS = "in turn"
DELTA_RANK = 32

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


def main(argv: Sequence[str]) -> None:
    """Run the benchmark; with ``--measure``, run one of its measured processes."""
    parser = arguments(__doc__, ["small"])
    parser.add_argument("--repeats", type=positive, default=11, help="timed turns of each way (default: %(default)s)")
    parser.add_argument("--processes", type=positive, default=3, help="for each way of memory (default: %(default)s)")
    parser.add_argument("--prompt", type=positive, default=32, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument("--measure", choices=list(MEMORY), metavar="WAY", help="one measured process of this benchmark")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where the measured process finds base and packs")
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(measured(options.measure, base_ref(options.work), options.work)))
        return
    sizes = [(packs, per) for per in PER_PACK for packs in PACKS]
    if options.quick:
        options.repeats, options.processes, sizes = 2, 1, [(1, 1), (8, 1), (2, 4)]
    record = Record.begin(NAME, options, argv, seeds=[0])
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            write_micro(Path(folder) / MICRO)
        ref = base_ref(Path(folder))
        for inverse in sorted({inverse for inverse, _ in LOADED.values()}):
            # A micro model has no room for so small a pack.
            made_up_pack(ref, 8 if options.quick else inverse).save_pretrained(Path(folder) / str(inverse))
        pack = Skillpack.from_pretrained(Path(folder) / "128")
        served = Served(ref, pack, max(packs for packs, _ in sizes))
        seconds = {
            (stage, *size): take_turns(served, stage, *size, options.prompt, options.repeats)
            for stage in (DECODE, PREFILL)
            for size in sizes
        }
        bandwidth = read_bandwidth()
        floors = {size: served.floors(*size, bandwidth) for size in sizes}
        record.rows.append({"what": "bandwidth", "bytes_per_second": round(bandwidth)})
        record.rows += [
            row for at, taken in seconds.items() for row in rows(*at, taken, floors[at[1:]] if at[0] == DECODE else {})
        ]
        record.claims += claims(seconds)
        del served
        gc.collect()
        readings = memory(Path(folder), options.processes)
    record.rows += memory_rows(readings)
    record.claims += memory_claims(readings)
    record.finish(table(record.rows), plot(record.rows))


# -- the packs and the models ----------------------------------------------------------------------------------------


def write_micro(folder: Path) -> None:
    """Write the micro model of a quick run."""
    micro_model(MicroShape(hidden=128), 1).save_pretrained(folder)  # type: ignore[operator]
    micro_tokenizer().save_pretrained(folder)


def base_ref(work: Path) -> str:
    """The base that is measured: the micro model if there is one in the folder, else SmolLM2."""
    return str(work / MICRO) if (work / MICRO).exists() else BASE_REF


def made_up_pack(ref: str, inverse: int) -> Skillpack:
    """A random delta of low rank on all linear layers, zipped to one of ``inverse`` parts of its bytes."""
    base = open_base(ref, dtype="float32")
    source = torch.Generator().manual_seed(0)
    head = base.model.get_output_embeddings()
    tensors = {}
    for name, module in base.model.named_modules():
        if not isinstance(module, nn.Linear) or module is head:
            continue
        out, inner = module.weight.shape
        rank = min(DELTA_RANK, out, inner)
        # Singular values fall, as those of a trained delta do.
        left = torch.randn(out, rank, generator=source) * torch.logspace(0, -1, rank)
        tensors[f"{name}.weight"] = 1e-3 * left @ torch.randn(rank, inner, generator=source) / rank**0.5
    delta = Delta(tensors, base_fingerprint=base.fingerprint, base_ref=base.ref)
    return zip_delta(delta, base, None, ZipConfig(ratio=1 / inverse), name=f"made-up-{inverse}", method="random")


def shuffled(pack: Skillpack, seed: int) -> Skillpack:
    """The pack with the numbers of every tensor in another order."""
    source = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor.flatten()[torch.randperm(tensor.numel(), generator=source)].view(tensor.shape)
        for name, tensor in pack.tensors.items()
    }
    return Skillpack(pack.card.model_copy(update={"name": f"p{seed}"}), tensors, pack.carried)


def with_packs(base: Base, pack: Skillpack, count: int) -> Weave:
    """A weave of the base with ``count`` packs p0, p1, ... in memory."""
    return Weave.of(base, {f"p{seed}": shuffled(pack, seed) for seed in range(count)})


def with_adapters(base: Base, pack: Skillpack, count: int) -> peft.PeftModel:
    """PEFT's model with ``count`` random LoRA adapters p0, p1, ... of the ranks and the layers of the pack."""
    ranks = {
        name.removesuffix(".weight"): entry.rank
        for name, entry in pack.card.entries.items()
        if isinstance(entry, LowRankEntry)
    }
    dtype = base.model.dtype
    model: Any = base.model
    for seed in range(count):
        config = peft.LoraConfig(
            r=1, lora_alpha=1, rank_pattern=ranks, target_modules=list(ranks), init_lora_weights=False
        )
        if seed == 0:
            model = peft.get_peft_model(model, config, adapter_name="p0", autocast_adapter_dtype=False)
        else:
            model.add_adapter(f"p{seed}", config, autocast_adapter_dtype=False)
    return model.to(dtype).eval()


@dataclass(frozen=True)
class Way:
    """One way to answer a batch: a forward pass, and the context in which it runs."""

    model: Any
    around: Callable[[int, int], contextlib.AbstractContextManager[Any]]
    """(packs, rows for each) -> the context in which batches of this size run"""


class Served:
    """All models, and the ways to answer with them."""

    def __init__(self, ref: str, pack: Skillpack, count: int) -> None:
        self.ways: dict[str, Way] = {}
        self.pack = pack
        self.bytes: dict[str, int] = {}
        """bytes of the weights that a decoding step reads, by backbone"""

        def nothing(packs: int, per: int) -> contextlib.AbstractContextManager[Any]:
            return contextlib.nullcontext()

        for backbone in (*DTYPES, INT8):
            base = open_base(ref, dtype="bfloat16" if backbone == INT8 else backbone)
            if backbone == INT8:
                put_into_int8(base)
            weave = with_packs(base, pack, count)
            self.bytes[backbone] = read_bytes(base.model)
            self.ways[f"base, {backbone}"] = Way(base.model, nothing)
            self.ways[f"packs, {backbone}"] = Way(base.model, lambda packs, per, weave=weave: mixed(weave, packs, per))
        for dtype in DTYPES:
            model = with_adapters(open_base(ref, dtype=dtype), pack, count)
            self.ways[f"PEFT, {dtype}"] = Way(
                model.get_base_model(), lambda packs, per, model=model: adapted(model, packs, per)
            )
        self.specialists = [open_base(ref, dtype="bfloat16").model for _ in range(2)]

    def floors(self, packs: int, per: int, bandwidth: float) -> dict[str, float]:
        """Way -> the seconds in which the bytes of a decoding step can be read."""
        found = {}
        for name, way in self.ways.items():
            what, backbone = name.split(", ")
            config = way.model.config
            heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
            element = 4 if backbone == "float32" else 2
            cache = 2 * config.num_hidden_layers * heads * width * CONTEXT * packs * per * element
            codes = sum(tensor.nbytes for tensor in self.pack.tensors.values())
            own = {"base": 0, "packs": packs * codes, "PEFT": packs * element * factor_elements(self.pack)}[what]
            found[name] = (self.bytes[backbone] + cache + own) / bandwidth
        return found


def mixed(weave: Weave, packs: int, per: int) -> contextlib.AbstractContextManager[Any]:
    """The context in which ``per`` rows use each of the first packs."""
    return weave.packed_model.rows([f"p{number % packs}" for number in range(packs * per)])


def adapted(model: Any, packs: int, per: int) -> contextlib.AbstractContextManager[Any]:
    """As :func:`mixed`, with PEFT. As in ``generate``, its hooks are set once for all steps."""
    return model._enable_peft_forward_hooks(adapter_names=[f"p{number % packs}" for number in range(packs * per)])


def read_bytes(model: Any) -> int:
    """Bytes of the weights that a decoding step reads: all, but of an input embedding only if it is the head's."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return sum(p.nbytes for p in model.parameters() if p is head or p is not table)


def factor_elements(pack: Skillpack) -> int:
    """The number of elements of all low-rank factors."""
    return sum(e.rank * sum(e.shape) for e in pack.card.entries.values() if isinstance(e, LowRankEntry))


# -- time ------------------------------------------------------------------------------------------------------------


def take_turns(served: Served, stage: str, packs: int, per: int, prompt: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat of each way: of one decoding step, or of one prompt, of a batch of this size."""
    ways: dict[str, Iterator[float]] = {
        name: turns(way, stage, packs, per, prompt) for name, way in served.ways.items()
    }
    if packs <= GOAL_PACKS:
        ways[TURNS] = one_after_another(served.specialists, stage, packs, per, prompt)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    with bar(f"{stage}: {packs} packs, {per} rows each", repeats + 1) as advance:
        for repeat in range(-1, repeats):
            at = repeat % len(names)
            for name in names[at:] + names[:at]:
                taken = next(ways[name])
                if repeat >= 0:  # the run before the first warms caches, kernels and contexts
                    seconds[name].append(taken)
            advance()
    for way in ways.values():
        way.close()  # type: ignore[attr-defined]  # leaves the context
    return seconds


@torch.no_grad()
def turns(way: Way, stage: str, packs: int, per: int, prompt: int) -> Iterator[float]:
    """Seconds of one turn after another. The context is opened for the turn: other ways use the same model."""
    one = Stage(way.model, stage, packs * per, prompt)
    while True:
        with way.around(packs, per):
            if stage == DECODE:
                one()  # unpacks the factors of this batch, which in a real one the prompt does
            taken = one()
        yield taken


@torch.no_grad()
def one_after_another(models: Sequence[Any], stage: str, packs: int, per: int, prompt: int) -> Iterator[float]:
    """Seconds for the rows of each pack in a batch of its own, on a model of its own."""
    own = [Stage(model, stage, per, prompt) for model in models]
    while True:
        for one in own:
            one()
        yield sum(own[number % len(own)]() for number in range(packs))


class Stage:
    """A batch of random tokens that is timed again and again."""

    def __init__(self, model: Any, stage: str, rows: int, prompt: int) -> None:
        source = torch.Generator().manual_seed(0)
        size = model.get_input_embeddings().weight.shape[0]
        self._model, self._decodes = model, stage == DECODE
        self._ids = torch.randint(size, (rows, 1 if self._decodes else prompt), generator=source)
        self._cache = None
        if self._decodes:
            start = torch.randint(size, (rows, CONTEXT), generator=source)
            self._cache = self._run(start, None)

    def _run(self, ids: torch.Tensor, cache: Any) -> Any:
        return self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values

    def __call__(self) -> float:
        """Seconds of one prompt, or of one decoding step on the average of :data:`STEPS`."""
        began = time.perf_counter()
        if not self._decodes:
            self._run(self._ids, None)
            return time.perf_counter() - began
        for _ in range(STEPS):
            self._run(self._ids, self._cache)
        taken = (time.perf_counter() - began) / STEPS
        self._cache.crop(-STEPS)  # type: ignore[attr-defined]
        return taken


def read_bandwidth() -> float:
    """Bytes a second at which a tensor that no cache can hold is summed: the best of several turns."""
    large = torch.ones(2**27)
    best = 0.0
    for _ in range(7):
        began = time.perf_counter()
        large.sum()
        best = max(best, large.nbytes / (time.perf_counter() - began))
    return best


# -- memory ----------------------------------------------------------------------------------------------------------


def measured(way: str, ref: str, work: Path) -> dict[str, Any]:
    """Bytes of the tensors, and resident bytes after loading and after a batch of answers."""
    if way == FLOOR:
        held = open_tokenizer(ref), Checkpoint(resolve(ref))
        loaded = resident()
        del held
        return {"tensors": 0, "loaded": loaded, "answered": loaded}
    base = open_base(ref, dtype="bfloat16", device="cpu")
    if way.startswith(INT8):
        put_into_int8(base)
    names: list[str | None] = [None] * BATCH
    weave = Weave.of(base)
    if way in LOADED:
        inverse, count = LOADED[way]
        weave = with_packs(base, Skillpack.from_pretrained(work / str(inverse)), count)
        names = [f"p{number}" for number in range(BATCH)]
    touch(base.model)
    loaded = resident()
    weave.generate([background_prompts()[0]] * BATCH, names, Sampling(max_new_tokens=8))
    return {"tensors": weave.base_bytes + weave.resident_bytes, "loaded": loaded, "answered": resident()}


def memory(work: Path, processes: int) -> dict[str, list[dict[str, Any]]]:
    """The results of :func:`measured` in fresh processes of each way, which take turns."""
    readings: dict[str, list[dict[str, Any]]] = {way: [] for way in MEMORY}
    with bar("processes", processes * len(MEMORY)) as advance:
        for _ in range(processes):
            for way in MEMORY:
                command = [sys.executable, "-m", "benchmarks.zip_speed", "--measure", way, "--work", str(work)]
                done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=RESULTS.parents[1])
                if done.returncode:
                    raise UserError(f"the process that measures '{MEMORY[way]}' failed:\n{done.stderr.strip()}")
                readings[way].append(json.loads(done.stdout.splitlines()[-1]))
                advance(note=MEMORY[way])
    return readings


def over_imports(readings: dict[str, list[dict[str, Any]]], way: str) -> list[float]:
    """Resident bytes of every process of a way after its answers, minus the median of the imports alone."""
    floor = statistics.median(reading["answered"]["rss"] for reading in readings[FLOOR])
    return [reading["answered"]["rss"] - floor for reading in readings[way]]


# -- figures ---------------------------------------------------------------------------------------------------------

Seconds = dict[tuple[str, int, int], dict[str, list[float]]]
"""(stage, packs, rows for each) -> way -> seconds of every repeat"""


def rows(stage: str, packs: int, per: int, taken: dict[str, list[float]], floors: dict[str, float]) -> list[dict]:
    """A row of the result for each way."""
    return [
        {
            "what": stage,
            "packs": packs,
            "rows_each": per,
            "way": way,
            "median_ms": round(1e3 * statistics.median(own), 3),
            "fastest_ms": round(1e3 * min(own), 3),
            "floor_ms": round(1e3 * floors[way], 3) if way in floors else None,
            "ms": [round(1e3 * value, 3) for value in own],
        }
        for way, own in taken.items()
    ]


def ratio(over: Sequence[float], under: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios of the repeats, with its bootstrap interval."""
    ratios = np.array(over) / np.array(under)
    return float(np.median(ratios)), *bootstrap(ratios, lambda picked: np.median(picked, axis=1))


def fastest(taken: dict[str, list[float]], what: str) -> str:
    """The dtype in which this way is fastest."""
    return min(DTYPES, key=lambda dtype: statistics.median(taken[f"{what}, {dtype}"]))


def claims(seconds: Seconds) -> list[Claim]:
    """The claims on time."""
    made = []
    for (stage, packs, per), taken in seconds.items():
        if packs != GOAL_PACKS:
            continue
        size = f"{stage}, {packs} packs, {per} row{'s' if per > 1 else ''} each"
        dtype = fastest(taken, "base")
        bare = taken[f"base, {dtype}"]
        made.append(
            judged(f"{size}: packs on int8 over bare base ({dtype})", *ratio(taken["packs, int8"], bare), "<= 1")
        )
        made.append(
            judged(f"{size}: packs over bare base, both {dtype}", *ratio(taken[f"packs, {dtype}"], bare), "<= 1.3")
        )
        for way in ("packs, int8", f"packs, {dtype}"):
            made.append(judged(f"{size}: full models in turn over {way}", *ratio(taken[TURNS], taken[way]), ">= 4"))
    for stage in (DECODE, PREFILL):
        for dtype in DTYPES:
            ratios = {
                at: ratio(taken[f"PEFT, {dtype}"], taken[f"packs, {dtype}"])
                for at, taken in seconds.items()
                if at[0] == stage
            }
            (_, packs, per), least = min(ratios.items(), key=lambda item: item[1][0])
            text = f"{stage}, {dtype}: PEFT over packs, the least of all sizes ({packs} packs, {per} each)"
            made.append(judged(text, *least, "> 1"))
    return made


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
            "of_base": round(statistics.median(over_imports(readings, way)) / base, 4),
            "processes": taken,
        }
        for way, taken in readings.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table of medians by way and size, and of memory."""
    timed = [row for row in rows if row["what"] in (DECODE, PREFILL)]
    sizes = list(dict.fromkeys((row["packs"], row["rows_each"]) for row in timed))
    lines = []
    for stage in (DECODE, PREFILL):
        for way in dict.fromkeys(row["way"] for row in timed):
            found = {(r["packs"], r["rows_each"]): r for r in timed if r["way"] == way and r["what"] == stage}
            cells = [f"{found[size]['median_ms']:.1f}" if size in found else "-" for size in sizes]
            lines.append([f"{stage}, ms", way, *cells])
            if stage == DECODE and way.startswith("packs"):
                floors = [f"{found[size]['floor_ms']:.1f}" if size in found else "-" for size in sizes]
                lines.append(["", "  bytes at full bandwidth", *floors])
    for row in rows:
        if row["what"] == "memory":
            over = human_bytes(row["over_imports"]), f"{row['of_base']:.2f}x"
            lines.append(["memory", row["way"], human_bytes(row["tensor_bytes"]), *over, *[""] * (len(sizes) - 3)])
    return Table(["what", "way", *(f"{packs} x {per}" for packs, per in sizes)], lines)


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of the milliseconds of a decoding step by the number of packs, one row each."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    timed = [row for row in rows if row["what"] == DECODE and row["rows_each"] == 1]
    colours = {"base": "#999999", "packs": "#009E73", "PEFT": "#D55E00", TURNS: "#0072B2"}
    styles = {"bfloat16": "-", "float32": ":", INT8: "--"}
    for way in dict.fromkeys(row["way"] for row in timed):
        what, _, backbone = way.partition(", ")
        own = [row for row in timed if row["way"] == way]
        axes.plot(
            [row["packs"] for row in own],
            [row["median_ms"] for row in own],
            color=colours[what],
            linestyle=styles.get(backbone, "-"),
            marker=".",
            label=way,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("packs in the batch, one row each")
    axes.set_ylabel("ms a decoding step")
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    run(main)
