"""Measure throughput and time to first token of the server with 1, 4 and 8 packs, beside other ways to serve them.

All ways answer the same chat requests of one model, 16 at a time: each caller sends its next request when it has its
answer. Prompts are drawn from 4,000 that differ early, so that no way answers from a cache of prompts it has read. The
packs are made up (see benchmarks/zip_speed): their bytes, ranks and operations are those of real ones at 1/64 of the
delta, and their answers mean nothing. Uniform use names each pack equally often; skewed use names the first
one for half of the requests, the second for a quarter, and so on.

- **skillweave**: ``skillweave serve`` in a process of its own, asked over HTTP, with the bare base and with packs.
- **full models in turn**: one full fine-tune in memory at a time, without a server. Requests for the same model share
  steps; the weights of the next one come from the page cache.
- **PEFT**: LoRA adapters of the same ranks in one model, in static mixed batches (``adapter_names``), without a server.
- **transformers serve**: the bare base with continuous batching, over HTTP.
- **vLLM**: LoRA adapters of equal rank, over HTTP, where SKILLWEAVE_VLLM_PYTHON names the Python of an environment
  with vLLM.

Claims are medians over repeats of ratios of tokens a second, with a bootstrap interval over repeats; in each repeat all
ways take turns. Goals: with 8 packs at least 85% of the throughput of the bare base in the same engine, at least four
times that of full models in turn, and more than vLLM.

    python -m benchmarks.serving                 SmolLM2: half an hour on two cores
    python -m benchmarks.serving --quick         a micro model, a minute
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from safetensors.torch import save_file

from benchmarks.common.record import Record, arguments, positive, run
from benchmarks.serving.in_process import FullModels, PeftBatches
from benchmarks.serving.servers import VLLM_PYTHON, skillweave_server, transformers_server, vllm_server
from benchmarks.serving.show import BARE, OURS, claims, plot, row, table
from benchmarks.zip_speed.models import made_up_pack, shuffled, with_adapters, write_micro
from skillweave.base import open_base
from skillweave.engine.vllm import export_vllm
from skillweave.progress import console
from skillweave.serve.load import LoadPlan, RequestTiming, planned_requests, run_load
from skillweave.weave import Weave

NAME = "serving"
BASE_REF = "bundled:smollm2"
PACKS = (1, 4, 8)
INVERSE = 64
PROMPTS = [
    f"On day {day}, write a long story about {who} in {where}. Tell every detail, and do not stop early."
    for day in range(1, 201)
    for who in ("a lighthouse keeper", "two old friends", "a lost dog", "the last train driver", "a young baker")
    for where in ("a harbour town", "the high mountains", "a city at night", "the far north")
]


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["small"])
    parser.add_argument("--repeats", type=positive, default=3, help="of each way (default: %(default)s)")
    parser.add_argument("--requests", type=positive, default=48, help="of each measurement (default: %(default)s)")
    parser.add_argument("--concurrency", type=positive, default=16, help="requests at once (default: %(default)s)")
    parser.add_argument("--max-tokens", type=positive, default=48, help="of an answer (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="of the base (default: %(default)s)")
    parser.add_argument(
        "--without", nargs="+", default=[], help="ways that are left out: peft, turns, transformers, vllm"
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.repeats, options.requests, options.max_tokens = 1, 8, 8
    record = Record.begin(NAME, options, argv, list(range(options.repeats)))
    with tempfile.TemporaryDirectory() as folder:
        record.rows = _Bench(Path(folder), options).measured()
    record.claims = claims(record.rows)
    record.finish(table(record.rows), plot(record.rows))


class _Bench:
    """The models of all ways in one folder, and their measurements."""

    def __init__(self, folder: Path, options: Any) -> None:
        self._folder, self._options = folder, options
        if options.quick:
            write_micro(folder / "micro")
        self._ref = str(folder / "micro") if options.quick else BASE_REF
        base = open_base(self._ref, dtype=options.dtype)
        pack = made_up_pack(self._ref, INVERSE)
        self._packs = {f"p{seed}": shuffled(pack, seed) for seed in range(max(PACKS))}
        self._weave = Weave.write(folder / "weave", base, self._packs, dtype=options.dtype)
        self._model = folder / "model"
        base.model.save_pretrained(self._model)
        base.tokenizer.save_pretrained(self._model)
        self._base, self._pack = base, pack

    def measured(self) -> list[dict[str, Any]]:
        """The rows of all repeats."""
        rows = []
        for repeat in range(self._options.repeats):
            for way, packs, use, timings, seconds in self._turn(repeat):
                rows.append(row(way, packs, use, repeat, timings, seconds))
                console.print(f"  {way}, {packs} packs, {use}: {rows[-1]['tokens_per_second']:.1f} tokens/s")
        return rows

    def _turn(self, repeat: int) -> Any:
        """Each way once: (way, number of packs, use, timings, seconds)."""
        options = self._options
        with skillweave_server(self._weave, "--dtype", options.dtype) as url:
            self._over_http(url, self._plan(["base"], repeat), warm=True)
            yield (BARE, 0, "", *self._over_http(url, self._plan(["base"], repeat)))
            for count in PACKS:
                names = list(self._packs)[:count]
                self._over_http(url, self._plan(names, repeat), warm=True)
                yield (OURS, count, "uniform", *self._over_http(url, self._plan(names, repeat)))
            yield (OURS, count, "skewed", *self._over_http(url, self._plan(names, repeat, skewed=True)))
        names = list(self._packs)
        if "transformers" not in options.without:
            with transformers_server(self._model, options.dtype) as url:
                plan = self._plan([str(self._model)], repeat)
                self._over_http(url, plan, warm=True)
                yield ("transformers serve, bare base", 0, "", *self._over_http(url, plan))
        if "vllm" not in options.without and os.environ.get(VLLM_PYTHON):
            with self._vllm() as url:
                for count in PACKS:
                    self._over_http(url, self._plan(names[:count], repeat), warm=True)
                    yield ("vLLM, LoRA", count, "uniform", *self._over_http(url, self._plan(names[:count], repeat)))
        if "peft" not in options.without:
            adapted = with_adapters(open_base(self._ref, dtype=options.dtype), self._pack, len(names))
            ways = PeftBatches(adapted, self._base)
            for count in PACKS:
                yield ("PEFT, mixed batches", count, "uniform", *self._in_process(ways, names[:count], repeat))
        if "turns" not in options.without:
            full = FullModels(open_base(self._ref, dtype=options.dtype), self._full_models(names))
            for count in PACKS:
                yield ("full models in turn", count, "uniform", *self._in_process(full, names[:count], repeat))

    def _plan(self, names: Sequence[str], repeat: int, *, skewed: bool = False) -> LoadPlan:
        mix = {name: 0.5 ** (at + 1) if skewed else 1.0 for at, name in enumerate(names)}
        options = self._options
        return LoadPlan(
            mix, requests=options.requests, concurrency=options.concurrency, prompts=PROMPTS,
            max_tokens=options.max_tokens, seed=repeat,
        )  # fmt: skip

    def _over_http(self, url: str, plan: LoadPlan, *, warm: bool = False) -> tuple[list[RequestTiming], float]:
        if warm:
            plan = replace(plan, requests=min(16, plan.requests), max_tokens=min(8, plan.max_tokens))

        async def ask() -> tuple[list[RequestTiming], float]:
            async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=plan.timeout) as client:
                return await run_load(client, plan, lambda _: None)

        return asyncio.run(ask())

    def _in_process(self, way: Any, names: Sequence[str], repeat: int) -> tuple[list[RequestTiming], float]:
        plan = self._plan(names, repeat)
        return asyncio.run(way.run(planned_requests(plan), plan.concurrency, plan.max_tokens))

    def _full_models(self, names: Sequence[str]) -> dict[str, Path]:
        """Full weights of each model. They are those of the base: what counts is that they are read and copied."""
        files = {}
        for name in names:
            files[name] = self._folder / f"{name}.safetensors"
            if not files[name].exists():
                save_file(dict(self._base.model.named_parameters()), files[name])
        return files

    @contextlib.contextmanager
    def _vllm(self) -> Any:
        exported = self._folder / "exported"
        if not exported.exists():
            export_vllm(self._weave, exported)
        with vllm_server(exported) as url:
            yield url


if __name__ == "__main__":
    run(main)
