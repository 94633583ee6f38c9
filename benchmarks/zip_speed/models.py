"""The packs and the models of the benchmark: made-up packs, and every way to answer a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from skillweave.base import Base, open_base
from skillweave.delta import Delta
from skillweave.micro import MicroShape, micro_model, micro_tokenizer
from skillweave.pack import LowRankEntry, Skillpack
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Weave, put_into_int8

BASE_REF = "bundled:smollm2"
MICRO = "micro"
CONTEXT = 64
"""Tokens in the cache before the first decoding step."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
INT8 = "int8"
DELTA_RANK = 32


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
    # What the pack says about the text on its card is another thing now.
    card = pack.card.model_copy(update={"name": f"p{seed}", "probe": None})
    return Skillpack(card, tensors, pack.carried)


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
