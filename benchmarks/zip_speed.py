"""Measure what packs cost in time and memory: decoding and prompts of mixed batches, against the base and against PEFT.

A batch has one row, or four, for each of 1, 2, 4, 8 and 16 packs at 1/128 of the delta's bytes. The packs are made up:
a random delta of low rank on all linear layers is zipped once, and the other packs are the same with the rows of every
A and the columns of every B in another order. So ranks, bytes and operations are those of a real pack; the answers mean nothing.

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

import argparse
import contextlib
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
DECODE, PREFILL, MEMORY_STAGE = STAGES = ("decode", "prompt", "memory")
STEPS = 4
"""Decoding steps in one timed turn."""
CONTEXT = 64
"""Tokens in the cache before the first of them."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
INT8 = "int8"
TURNS = "in turn"
DELTA_RANK = 32
Clock = Callable[[], float]

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
    """The pack with the rows of every A and the columns of every B in another order.

    Each rank keeps its own codes, so that it takes as many bits in memory, and in the file, as that of a real pack.
    """
    source = torch.Generator().manual_seed(seed)
    tensors = dict(pack.tensors)
    for name, tensor in pack.tensors.items():
        axis = {".A": 0, ".B": 1}.get(name[-2:])
        if axis is not None:
            tensors[name] = tensor.index_select(axis, torch.randperm(tensor.shape[axis], generator=source))
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
class Size:
    """What is timed: a decoding step, or a prompt of so many tokens, with ``rows_each`` rows for each pack."""

    stage: str
    packs: int
    rows_each: int
    prompt: int

    @property
    def rows(self) -> int:
        return self.packs * self.rows_each


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


def take_turns(served: Served, size: Size, repeats: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of every repeat of each way: of one decoding step, or of one prompt, of a batch of this size."""
    ways: dict[str, Iterator[float]] = {name: turns(way, size, clock) for name, way in served.ways.items()}
    if size.packs <= GOAL_PACKS:
        ways[TURNS] = one_after_another(served.specialists, size, clock)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    with bar(f"{size.stage}: {size.packs} packs, {size.rows_each} rows each", repeats + 1) as advance:
        for repeat in range(-1, repeats):
            at = repeat % len(names)
            for name in names[at:] + names[:at]:
                taken = next(ways[name])
                if repeat >= 0:  # the run before the first warms caches and kernels
                    seconds[name].append(taken)
            advance()
    return seconds


@torch.no_grad()
def turns(way: Way, size: Size, clock: Clock) -> Iterator[float]:
    """Seconds of one turn after another. The context is opened for the turn, because other ways use the same model."""
    one = Stage(way.model, size, size.rows, clock)
    while True:
        with way.around(size.packs, size.rows_each):
            if size.stage == DECODE:
                one.step()  # unpacks the factors of this batch, which in a real one the prompt does
            taken = one()
        yield taken


@torch.no_grad()
def one_after_another(models: Sequence[Any], size: Size, clock: Clock) -> Iterator[float]:
    """Seconds for the rows of each pack in a batch of its own, on a model of its own."""
    own = [Stage(model, size, size.rows_each, clock) for model in models]
    while True:
        yield sum(own[number % len(own)]() for number in range(size.packs))


class Stage:
    """A batch of random tokens that is timed again and again."""

    def __init__(self, model: Any, size: Size, rows: int, clock: Clock) -> None:
        source = torch.Generator().manual_seed(0)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        self._model, self._clock = model, clock
        self._cache = None
        if size.stage == DECODE:
            self._run(torch.randint(vocabulary, (rows, CONTEXT), generator=source))
        self._ids = torch.randint(vocabulary, (rows, size.prompt if self._cache is None else 1), generator=source)
        self._decodes = size.stage == DECODE

    def _run(self, ids: torch.Tensor) -> None:
        self._cache = self._model(
            input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        ).past_key_values

    def step(self) -> None:
        """Decode one token for each row, and forget it."""
        self._run(self._ids)
        self._cache.crop(-1)  # type: ignore[attr-defined]

    def __call__(self) -> float:
        """Seconds of one prompt, or of one decoding step on the average of :data:`STEPS`."""
        if not self._decodes:
            self._cache = None
        count = STEPS if self._decodes else 1
        began = self._clock()
        for _ in range(count):
            self._run(self._ids)
        taken = (self._clock() - began) / count
        if self._decodes:
            self._cache.crop(-STEPS)  # type: ignore[attr-defined]
        return taken


def read_bandwidth(clock: Clock) -> float:
    """Bytes a second at which a tensor that no cache can hold is summed: the best of several turns."""
    large = torch.ones(2**27)
    best = 0.0
    for _ in range(7):
        began = clock()
        large.sum()
        best = max(best, large.nbytes / (clock() - began))
    return best


# -- memory ----------------------------------------------------------------------------------------------------------


def measured(way: str, ref: str, work: Path) -> dict[str, Any]:
    """Bytes of the tensors, and resident bytes after loading and after a batch of answers."""
    if way == FLOOR:
        held = open_tokenizer(ref), Checkpoint(resolve(ref))
        loaded = resident()
        del held
        return {"tensors": 0, "loaded": loaded, "answered": loaded}
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


def rows(size: Size, taken: dict[str, list[float]], floors: dict[str, float]) -> list[dict[str, Any]]:
    """A row of the result for each way."""
    return [
        {
            "what": size.stage,
            "packs": size.packs,
            "rows_each": size.rows_each,
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


def claims(seconds: dict[Size, dict[str, list[float]]]) -> list[Claim]:
    """The claims on time, from the seconds of every repeat of each way."""
    made = []
    for size, taken in seconds.items():
        if size.packs != GOAL_PACKS:
            continue
        text = f"{size.stage}, {size.packs} packs, {size.rows_each} row{'s' if size.rows_each > 1 else ''} each"
        dtype = min(DTYPES, key=lambda dtype: statistics.median(taken[f"base, {dtype}"]))
        bare, plain = taken[f"base, {dtype}"], taken[f"packs, {dtype}"]
        made.append(
            judged(f"{text}: packs on int8 over bare base ({dtype})", *ratio(taken["packs, int8"], bare), "<= 1")
        )
        made.append(judged(f"{text}: packs over bare base, both {dtype}", *ratio(plain, bare), "<= 1.3"))
        for way in ("packs, int8", f"packs, {dtype}"):
            made.append(judged(f"{text}: full models in turn over {way}", *ratio(taken[TURNS], taken[way]), ">= 4"))
    for stage in dict.fromkeys(size.stage for size in seconds):
        for dtype in DTYPES:
            ratios = {
                size: ratio(taken[f"PEFT, {dtype}"], taken[f"packs, {dtype}"])
                for size, taken in seconds.items()
                if size.stage == stage
            }
            least, values = min(ratios.items(), key=lambda item: item[1][0])
            text = f"{stage}, {dtype}: PEFT over packs, the least of all sizes ({least.packs} x {least.rows_each})"
            made.append(judged(text, *values, "> 1"))
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
            lines.append(["memory", row["way"], human_bytes(row["tensor_bytes"]), *over])
    width = max(5, 2 + len(sizes))
    header = ["what", "way", *(f"{packs} x {per}" for packs, per in sizes)]
    return Table(header + [""] * (width - len(header)), [line + [""] * (width - len(line)) for line in lines])


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of the milliseconds of a decoding step by the number of packs, one row each."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    least = min((row["rows_each"] for row in rows if row["what"] == DECODE), default=1)
    timed = [row for row in rows if row["what"] == DECODE and row["rows_each"] == least]
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
    axes.set_xlabel(f"packs in the batch, rows for each: {least}")
    axes.set_ylabel("ms a decoding step")
    if timed:
        axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    run(main)
