"""One valid artefact of each kind, made in a second, and two readers for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from helpers.fuzz.mutations import read_safetensors
from helpers.fuzz.oracle import Found, Kind, Nonsense
from helpers.micro import micro_tokenizer
from helpers.plain_coded import plain_card, plain_coded
from skillweave.base import Base, open_base
from skillweave.delta import Delta
from skillweave.micro import MicroShape
from skillweave.micro import micro_model as micro_of
from skillweave.pack import Skillpack
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Router, Weave

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def artefact_kinds(folder: Path) -> list[Kind]:
    """One valid artefact of each kind in ``folder``, all on one micro base."""
    shape = MicroShape(hidden=16, layers=1, intermediate=32, context=64)
    good = folder / "base"
    micro_of(shape, 1).save_pretrained(good)
    micro_tokenizer().save_pretrained(good)
    base = open_base(good)
    tuned = _tuned(good, folder / "tuned")
    Delta.between(good, tuned).save_pretrained(folder / "delta")
    for place, settings in (("uncoded", {"scales": "row"}), ("pack", {})):
        config = ZipConfig(budget=9000, allow_left_out=True, **settings)
        pack = zip_delta(Delta.from_pretrained(folder / "delta"), base, None, config, name="sort")
        pack.card.scores = {"test": {"mean": 0.5, "n": 10}}
        pack.save_pretrained(folder / place)
    adapter = _adapter(folder / "adapter", base)
    router = Router(["sort", "base"], torch.ones(2, 16), torch.zeros(2), torch.zeros(16), torch.ones(16), 1, 0.5)
    router.save(folder / "router")
    Weave.write(folder / "weave", base, {"sort": pack}, router)
    return [
        Kind("delta", folder / "delta", read_delta, plain_delta),
        Kind("pack", folder / "pack", read_pack, plain_pack),
        Kind("uncoded pack", folder / "uncoded", read_pack, plain_pack),
        Kind("weave", folder / "weave", lambda place: read_weave(place, base), plain_weave),
        Kind("router", folder / "router", _read_router, plain_router),
        Kind("adapter", adapter, lambda place: read_adapter(place, base), lambda place: _plain_adapter(place)),
        Kind("base", good, _read_base, _plain_base),
    ]


def _tuned(base: Path, folder: Path) -> Path:
    model, generator = AutoModelForCausalLM.from_pretrained(base), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    micro_tokenizer().save_pretrained(folder)
    return folder


def _adapter(folder: Path, base: Base) -> Path:
    """A plain LoRA adapter as PEFT writes it."""
    folder.mkdir()
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name, module in base.model.named_modules():
        if name.endswith(("q_proj", "down_proj")):
            out, inner = module.weight.shape
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(2, inner, generator=generator)
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "down_proj"],
        "base_model_name_or_path": base.ref,
        "task_type": "CAUSAL_LM",
        "lora_dropout": 0.0,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def digest_of(tensor: torch.Tensor) -> str:
    """A digest of a tensor: its shape, its dtype and its bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    raw = b"" if flat.numel() == 0 else flat.view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} {str(tensor.dtype)[6:]} {hashlib.sha256(raw).hexdigest()[:16]}"


def _digests(tensors: Mapping[str, torch.Tensor], prefix: str = "") -> Found:
    return {f"tensor {prefix}{name}": digest_of(tensors[name]) for name in tensors}


def plain_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, read by the format's definition alone."""
    header, data = read_safetensors(file)
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            dtype = _DTYPES[entry["dtype"]]
            found[name] = torch.frombuffer(bytearray(data[begin:end]) or bytearray(8), dtype=dtype)[
                : (end - begin) // dtype.itemsize
            ].reshape(entry["shape"])
    return found


def read_json_plainly(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8-sig"))


# -- delta -----------------------------------------------------------------------------------------------------------


def read_delta(folder: Path) -> Found:
    delta = Delta.from_pretrained(folder)
    finite({name: delta.tensor(name) for name in delta.names()}, folder)
    return {
        **_digests({name: delta.tensor(name) for name in delta.names()}),
        "whole": sorted(name for name in delta.names() if delta.whole(name)),
        "fingerprint": delta.base_fingerprint,
        "base": delta.base_ref,
        "provenance": delta.provenance,
    }


def plain_delta(folder: Path) -> Found:
    card = read_json_plainly(folder / "delta.json")
    files = {entry["file"] for entry in card["entries"].values()}
    tensors = {name: tensor for file in files for name, tensor in plain_tensors(folder / file).items()}
    return {
        **_digests(tensors),
        "whole": sorted(name for name, entry in card["entries"].items() if entry["stored"] == "whole"),
        "fingerprint": card["base"]["fingerprint"],
        "base": card["base"]["ref"],
        "provenance": card["provenance"],
    }


def finite(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Raise if a value is NaN or infinite: a model with such a weight answers nothing."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise Nonsense(f"{folder.name}: '{name}' was accepted with numbers that are not finite")


# -- pack ------------------------------------------------------------------------------------------------------------


def read_pack(folder: Path) -> Found:
    pack = Skillpack.from_pretrained(folder)
    finite(pack.tensors, folder)
    delta = pack.unzip()
    finite({name: delta.tensor(name) for name in delta.names()}, folder)
    card = pack.card.model_dump(mode="json")
    return {**_digests(pack.tensors), "card": {key: value for key, value in card.items() if key != "files"}}


def plain_pack(folder: Path) -> Found:
    card = plain_card(folder)
    return {
        **_digests(pack_tensors(folder, card)),
        "card": {key: value for key, value in card.items() if key != "files"},
    }


def pack_tensors(folder: Path, card: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a pack, read by the definitions of both of its formats alone."""
    if "skillpack.coded" in card["files"]:
        return plain_coded(folder / "skillpack.coded", card["entries"])
    return plain_tensors(folder / "skillpack.safetensors")


# -- router and weave ------------------------------------------------------------------------------------------------

_ROUTER = ("classes", "layer", "threshold", "figures")
_ROUTER_TENSORS = ("weight", "bias", "mean", "spread")


def _read_router(folder: Path) -> Found:
    router = Router.load(folder)
    tensors = {name: getattr(router, name) for name in _ROUTER_TENSORS}
    finite(tensors, folder)
    router.route(torch.ones(router.mean.shape))
    return {**_digests(tensors), **{name: getattr(router, name) for name in _ROUTER}}


def plain_router(folder: Path) -> Found:
    card = read_json_plainly(folder / "router.json")
    return {**_digests(plain_tensors(folder / "router.safetensors")), **{name: card[name] for name in _ROUTER}}


def read_weave(folder: Path, base: Base | Path) -> Found:
    weave = Weave.from_pretrained(folder, base=base)
    card = weave.card.model_dump(mode="json")
    found: Found = {"card": {key: value for key, value in card.items() if key != "files"}}
    for name in weave.packs:
        found |= {f"{name} {part}": value for part, value in read_pack(folder / "packs" / name).items()}
    if weave.router is not None:
        found |= {f"router {part}": value for part, value in _read_router(folder / "router").items()}
    return found


def plain_weave(folder: Path) -> Found:
    card = read_json_plainly(folder / "weave.json")
    found: Found = {"card": {key: value for key, value in card.items() if key != "files"}}
    for name in card["packs"]:
        found |= {f"{name} {part}": value for part, value in plain_pack(folder / "packs" / name).items()}
    if card.get("router"):
        found |= {f"router {part}": value for part, value in plain_router(folder / "router").items()}
    return found


# -- adapter and base ------------------------------------------------------------------------------------------------


def read_adapter(folder: Path, base: Base) -> Found:
    delta = Delta.from_lora(folder, base)
    tensors = {name: delta.tensor(name) for name in delta.names()}
    finite(tensors, folder)
    return {**_digests(tensors), "names": sorted(tensors)}


def _plain_adapter(folder: Path) -> Found:
    """The change by PEFT's own formula, s B A, for a plain LoRA adapter; any other adapter may only be refused."""
    config, tensors = (
        read_json_plainly(folder / "adapter_config.json"),
        plain_tensors(folder / "adapter_model.safetensors"),
    )
    changed = {}
    for name, tensor in tensors.items():
        if name.endswith(".lora_A.weight"):
            own = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            rank = tensor.shape[0]
            patterns = config.get("alpha_pattern") or {}
            alpha = patterns.get(own, config.get("lora_alpha", 8))
            scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
            b = tensors[name.replace("lora_A", "lora_B")]
            changed[f"{own}.weight"] = b.float() @ tensor.float() * scale
    return {**_digests(changed), "names": sorted(changed)}


def _read_base(folder: Path) -> Found:
    base = open_base(folder)
    base.tokenizer("abc 12")
    state = base.model.state_dict()
    return {**_digests(state), "fingerprint": base.fingerprint}


def _plain_base(folder: Path) -> Found:
    """The tensors of the only weight file, if the config names no other dtype; their fingerprint is computed here."""
    return _digests(plain_tensors(folder / "model.safetensors"))
