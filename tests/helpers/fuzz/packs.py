"""Artefacts with more than plain matrices: tokenizers, token rows, transposed and stacked layers, all adapters."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GraniteMoeConfig

from helpers import travelling
from helpers.fuzz.artefacts import (
    finite,
    pack_tensors,
    plain_delta,
    plain_pack,
    plain_router,
    plain_weave,
    read_adapter,
    read_delta,
    read_json_plainly,
    read_pack,
    read_weave,
)
from helpers.fuzz.oracle import Found, Kind
from helpers.micro import micro_tokenizer
from helpers.micro_families import tune
from helpers.plain_coded import plain_card
from skillweave.base import Base, Sampling, open_base
from skillweave.base.chat import prompt_ids
from skillweave.delta import Delta
from skillweave.micro.tokenizer import VOCABULARY
from skillweave.pack import Skillpack, export_lora
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Router, Weave

TEMPLATE = travelling.TEMPLATE.replace("[assistant]", "[tool]")
SIZES = {
    "turned": GPT2Config(n_positions=32, n_embd=16, n_layer=1, n_head=2, vocab_size=len(VOCABULARY)),
    "stacked": GraniteMoeConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        num_experts_per_tok=2,
        vocab_size=len(VOCABULARY),
    ),
}
SHAPES = {
    "turned": ("turned", "skillzip"),
    "stacked": ("stacked", "skillzip"),
    "turned, mixed": ("turned", "delta-come"),
    "stacked, grouped": ("stacked", "dqrelo"),
}
"""kind -> (shape of the model, codec)"""
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("Lora", {"r": 2, "use_dora": True, "lora_alpha": 3}),
    "saved": ("Lora", {"r": 2, "rank_pattern": {"down_proj": 1}, "modules_to_save": ["norm"]}),
    "tokens": ("Lora", {"r": 2, "trainable_token_indices": [3, 7]}),
    "loha": ("LoHa", {"r": 2, "alpha": 6}),
    "ia3": ("IA3", {"feedforward_modules": ["down_proj"]}),
    "oft": ("OFT", {"oft_block_size": 8}),
}


class Near:
    """A tensor that equals another one that is close to it, for results of two ways to compute them."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach().float()

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Near) or self.tensor.shape != other.tensor.shape:
            return False
        size = float(other.tensor.abs().max()) if other.tensor.numel() else 0.0
        return bool(torch.allclose(self.tensor, other.tensor, rtol=1e-4, atol=1e-5 * max(size, 1e-3), equal_nan=True))

    def __repr__(self) -> str:
        return f"{tuple(self.tensor.shape)} {self.tensor.flatten()[:4].tolist()}..."


def pack_kinds(folder: Path) -> list[Kind]:
    """One valid artefact of each kind in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = _travelling(folder / "travelling")
    for name, (shape, codec) in SHAPES.items():
        kinds += _of_shape(folder / name.replace(", ", "-"), name, SIZES[shape], codec)
    return [*kinds, *_adapters(folder / "adapters")]


def _zipped(base: Base, tuned: Path, delta: Path, pack: Path, name: str, **settings: Any) -> Skillpack:
    Delta.between(base.path, tuned).save_pretrained(delta)
    config = ZipConfig(**{"budget": 200_000, "bits": 4, "allow_left_out": True, **settings})
    made = zip_delta(Delta.from_pretrained(delta), base, None, config, name=name)
    made.save_pretrained(pack)
    return made


def _travelling(folder: Path) -> list[Kind]:
    """A fine-tune with added tokens, its own template and end tokens, as delta, pack, weave, backbone and adapter."""
    plain = travelling.tokenizer(template=travelling.TEMPLATE)
    own = travelling.tokenizer("<tool>", template=TEMPLATE)
    place = travelling.save(folder / "base", travelling.model(), plain)
    moved = travelling.tuned(travelling.model(), 116, vocabulary=True)
    tuned = travelling.save(folder / "tuned", moved, own, [1, 98])
    base = open_base(place)
    pack = _zipped(base, tuned, folder / "delta", folder / "pack", "own")
    assert {entry.kind for entry in pack.card.entries.values()} >= {"rows", "lowrank"}
    assert pack.card.from_base
    assert len(pack.card.files) > 1
    router = Router(["own", "base"], torch.ones(2, 32), torch.zeros(2), torch.zeros(32), torch.ones(32), 1, 0.5)
    Weave.write(folder / "weave", base, {"own": pack}, router)
    backbone = Weave.write(folder / "backbone", open_base(tuned), {}, backbone=folder / "delta")
    said = ("the pack 'own'",)
    adapter = export_lora(pack, folder / "exported", allow_left_out=True).folder
    return [
        Kind("delta with files", folder / "delta", lambda path: _speaking_delta(path, base), _plain_delta_files),
        Kind(
            "pack with files",
            folder / "pack",
            lambda path: _speaking_pack(path, base),
            _plain_pack_files,
            ("the pack 'own'",),
        ),
        Kind("weave with files", folder / "weave", lambda path: _answering(path, base), plain_weave),
        Kind("weave with backbone", backbone, lambda path: read_weave(path, place), _plain_backbone),
        Kind("exported adapter", adapter, lambda path: _merged(path, base), lambda path: _by_peft(path, place, 116)),
        Kind("pack exported", folder / "pack", lambda path: _exported(path, base), _plain_values, said),
    ]


def _of_shape(folder: Path, name: str, shape: Any, codec: str) -> list[Kind]:
    """A pack of a model family that stores its layers unlike most others."""
    shape.pad_token_id = 0
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(shape).eval()
    for place, one in (("base", model), ("tuned", None)):
        (one or tune(model, 7)).save_pretrained(folder / place)
        micro_tokenizer().save_pretrained(folder / place)
    base = open_base(folder / "base")
    called = name.replace(", ", "-")
    pack = _zipped(base, folder / "tuned", folder / "delta", folder / "pack", called, bits=8, codec=codec)
    entries = pack.card.entries.values()
    assert any(e.kind == "stacked" or getattr(e, "stacked", False) or getattr(e, "transposed", False) for e in entries)
    said = (f"the pack '{called}'",)
    kinds = [Kind(f"pack, {name}", folder / "pack", lambda path: _served_pack(path, base), _plain_pack_values, said)]
    if codec == "dqrelo":  # signs cannot be exported
        return kinds
    read: Callable[[Path], Found] = lambda path: _exported(path, base)  # noqa: E731
    return [*kinds, Kind(f"pack exported, {name}", folder / "pack", read, _plain_values, said)]


def _adapters(folder: Path) -> list[Kind]:
    """Adapters that are not plain LoRA, or more than that, as PEFT writes them."""
    place = folder / "base"
    travelling.save(place, travelling.model(), travelling.tokenizer())
    base = open_base(place)
    kinds = []
    for name, (kind, options) in ADAPTERS.items():
        torch.manual_seed(5)
        config = getattr(peft, f"{kind}Config")(
            task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], **options
        )
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(place), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape))
        model.save_pretrained(folder / name)
        (folder / name / "README.md").unlink()  # 200 lines of output that nobody reads
        read: Callable[[Path], Found] = lambda path: _merged(path, base)  # noqa: E731
        kinds.append(Kind(f"adapter, {name}", folder / name, read, lambda path: _by_peft(path, place)))
    return kinds


# -- what travels with a pack ---------------------------------------------------------------------------------------


def _carried(files: dict[str, bytes]) -> Found:
    return {f"file {name}": hashlib.sha256(data).hexdigest() for name, data in files.items()}


def _plain_carried(folder: Path, card: dict[str, Any]) -> Found:
    names = [name.removeprefix("files/") for name in card["files"] if name.startswith("files/")]
    return _carried({name: (folder / "files" / name).read_bytes() for name in names})


def _speech(of: Delta | Skillpack, base: Base) -> Found:
    """The effects of the tokenizer, the template and the generation config that travel with an artefact."""
    voice = of.voice(base)
    return {
        "ids": voice.tokenizer("ab <tool>1")["input_ids"],
        "prompt": prompt_ids(voice.tokenizer, "ab"),
        "ends": sorted(voice.stops(base.model)),
        "defaults": voice.defaults(base.model),
    }


def _speaking_delta(folder: Path, base: Base) -> Found:
    found, delta = read_delta(folder), Delta.from_pretrained(folder)
    tuned = delta.apply(base)
    tuned.tokenizer("ab <tool>1")
    return {**found, **_carried(dict(delta.carried.files)), "rows": tuned.model.get_input_embeddings().weight.shape[0]}


def _plain_delta_files(folder: Path) -> Found:
    return {**plain_delta(folder), **_plain_carried(folder, read_json_plainly(folder / "delta.json"))}


def _speaking_pack(folder: Path, base: Base) -> Found:
    found, pack = _served_pack(folder, base), Skillpack.from_pretrained(folder)
    return {**found, **_carried(dict(pack.carried.files)), **_speech(pack, base)}


def _plain_pack_files(folder: Path) -> Found:
    card = read_json_plainly(folder / "skillpack.json")
    return {**_plain_pack_values(folder), **_plain_carried(folder, card)}


def _served_pack(folder: Path, base: Base) -> Found:
    """A pack's card, its tensors and the change that they encode; the pack must also answer, whatever its numbers."""
    found, pack = read_pack(folder), Skillpack.from_pretrained(folder)
    pack.check_base(base.fingerprint)
    weave = Weave.of(base, {pack.card.name: pack})
    replies = weave.generate(["ab 1"], pack.card.name, Sampling(max_new_tokens=2))
    return {**found, **_changes(pack.unzip()), "replies": len(replies)}


def _changes(delta: Delta) -> Found:
    return {f"change {name}": Near(delta.tensor(name)) for name in delta.names()}


def _plain_pack_values(folder: Path) -> Found:
    return {**plain_pack(folder), **_plain_values(folder)}


def _answering(folder: Path, base: Base) -> Found:
    found, weave = read_weave(folder, base), Weave.from_pretrained(folder, base=base)
    replies = weave.generate(["ab 1", "c"], [*weave.packs[:1], None], Sampling(max_new_tokens=2))
    return {**found, "replies": len(replies)}


def _plain_backbone(folder: Path) -> Found:
    card = read_json_plainly(folder / "weave.json")
    found: Found = {"card": {key: value for key, value in card.items() if key != "files"}}
    if card.get("router"):
        found |= {f"router {part}": value for part, value in plain_router(folder / "router").items()}
    return found


# -- a pack's change, computed entry by entry, without any code of ours -----------------------------------------------


def _plain_values(folder: Path) -> Found:
    """The change of each tensor by the table of the pack format, with loops in float64."""
    card = plain_card(folder)
    stored = pack_tensors(folder, card)
    found: dict[str, torch.Tensor] = {}
    for name, entry in card["entries"].items():
        if entry["kind"] in ("lowrank", "factors"):
            found[name] = _plain_matrix(stored, name, entry)
        elif entry["kind"] == "stacked":
            found[name] = _plain_stack(stored, name, entry)
        elif entry["kind"] in ("grouped", "mixed"):
            found[name] = _plain_coded(stored, name, entry)
        elif entry["kind"] != "rows":
            found[name] = stored[name].double()
    for name, entry in card["entries"].items():
        if entry["kind"] == "rows":
            own, rows = name.removesuffix(".rows"), min(entry["shape"][0], entry["base_rows"])
            shared = found.get(own, torch.zeros(rows, *entry["shape"][1:], dtype=torch.float64))[:rows]
            found[own] = torch.cat([shared, stored[name].double()]) if name in stored else shared
    return {f"change {name}": Near(tensor) for name, tensor in found.items()}


def _plain_matrix(stored: dict[str, torch.Tensor], name: str, entry: dict[str, Any]) -> torch.Tensor:
    left, right = stored[f"{name}.A"], stored[f"{name}.B"]
    turned, shape = entry.get("transposed", False), entry["shape"]
    columns = shape[0] if turned else torch.Size(shape[1:]).numel()
    if entry["kind"] == "lowrank":
        if entry["bits"] == 4:
            left, right = _nibbles(left, entry["rank"]), _nibbles(right, columns)
        if entry.get("scales", "row") == "row":
            left = torch.diag(stored[f"{name}.A_scale"].double()) @ left.double()
        left = left.double()
        right = torch.diag(stored[f"{name}.B_scale"].double()) @ right.double()
        if entry.get("smooth"):
            right = right / stored[f"{entry['group']}.smooth"].double()
    matrix = left.double() @ right.double()
    return (matrix.T if turned else matrix).reshape(shape)


def _plain_stack(stored: dict[str, torch.Tensor], name: str, entry: dict[str, Any]) -> torch.Tensor:
    rows, columns = entry["shape"][-2:]
    matrices, at, column = [], 0, 0
    for index, rank in enumerate(entry["ranks"]):
        wide = (rank + 1) // 2 if entry["bits"] == 4 else rank
        left, right = stored[f"{name}.A"][:, column : column + wide], stored[f"{name}.B"][at : at + rank]
        if entry["bits"] == 4:
            left, right = _nibbles(left, rank), _nibbles(right, columns)
        left, right = left.double(), right.double()
        if entry["bits"] != 16 and entry.get("scales", "row") == "row":
            left = stored[f"{name}.A_scale"][index].double()[:, None] * left
        if entry["bits"] != 16:
            right = stored[f"{name}.B_scale"][at : at + rank].double()[:, None] * right
        matrices.append(left @ right if rank else torch.zeros(rows, columns, dtype=torch.float64))
        at, column = at + rank, column + wide
    return torch.stack(matrices).reshape(entry["shape"])


def _plain_coded(stored: dict[str, torch.Tensor], name: str, entry: dict[str, Any]) -> torch.Tensor:
    shape, turned = entry["shape"], entry.get("transposed", False)
    rows, columns = (shape[-2], shape[-1]) if entry.get("stacked") else (shape[0], torch.Size(shape[1:]).numel())
    if turned:
        rows, columns = columns, rows
    matrices = torch.Size(shape[:-2]).numel() if entry.get("stacked") else 1
    codes, scales = stored[f"{name}.codes"].flatten().tolist(), stored[f"{name}.scale"].double().flatten().tolist()
    size = entry.get("group_size") or rows * columns
    made = []
    for index in range(matrices):
        if entry["kind"] == "mixed":
            vectors = [
                [_next_vector(codes, scales, bits, length, size) for _ in range(count)]
                for bits, count in entry["bands"]
                for length in (rows, columns)
            ]
            left, right = (list(itertools.chain.from_iterable(vectors[part::2])) for part in (0, 1))
            matrix = torch.tensor(left, dtype=torch.float64).T @ torch.tensor(right, dtype=torch.float64)
        else:
            own = scales if entry.get("group_size") else [scales[index]] * rows
            found = [_next_vector(codes, own, entry["bits"], columns, size) for _ in range(rows)]
            matrix = torch.tensor(found, dtype=torch.float64)
            if rank := entry.get("rank", 0):
                left = stored[f"{name}.A"].double()[index * rows : (index + 1) * rows]
                matrix += left @ stored[f"{name}.B"].double()[index * rank : (index + 1) * rank]
        made.append(matrix.T if turned else matrix)
    return torch.stack(made).reshape(shape)


def _next_vector(codes: list[int], scales: list[float], bits: int, length: int, size: int) -> list[float]:
    """Take the bytes and the scales of the next ``length`` codes off the fronts of the lists; return their numbers."""
    taken = (length * bits + 7) // 8
    stream = sum(byte << (8 * at) for at, byte in enumerate(codes[:taken]))
    del codes[:taken]
    groups = scales[: (length + size - 1) // size]
    del scales[: len(groups)]
    numbers = []
    for at in range(length):
        code = (stream >> (at * bits)) % 2**bits
        code -= 2**bits if code >= 2 ** (bits - 1) else 0
        numbers.append((2 * code + 1 if bits <= 3 else code) * groups[at // size])
    return numbers


def _nibbles(codes: torch.Tensor, count: int) -> torch.Tensor:
    """Unpack two 4-bit codes from each byte: the first in the lower half, each from -8 to 7 (two's complement)."""
    both = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2).to(torch.int16)[..., :count]
    return torch.where(both > 7, both - 16, both)


# -- adapters --------------------------------------------------------------------------------------------------------


def _merged(folder: Path, base: Base) -> Found:
    """The tuned value of each tensor that an adapter changes."""
    read_adapter(folder, base)
    delta, found = Delta.from_lora(folder, base), {}
    for name in delta.names():
        tensor = delta.tensor(name).float()
        if not delta.whole(name):
            tensor = tensor.clone()
            before = base.checkpoint.tensor(name).float()
            tensor[: len(before)] += before[: len(tensor)]
        found[f"tuned {name}"] = Near(tensor)
    return {**found, "names": sorted(delta.names())}


def _by_peft(folder: Path, place: Path, rows: int | None = None) -> Found:
    """The same values by PEFT's own merge."""
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
    changed = [name for name in merged if name not in before or not torch.equal(merged[name], before[name])]
    return {f"tuned {name}": Near(merged[name]) for name in changed}


def _exported(folder: Path, base: Base) -> Found:
    """The change of the adapter that a pack is exported to, if all of the pack can be exported."""
    pack = Skillpack.from_pretrained(folder)
    out = folder.parent / "out"
    done = export_lora(pack, out, base=base.path, allow_left_out=True)
    delta, unzipped, found = Delta.from_lora(done.folder, base), pack.unzip(), {}
    for name in unzipped.names():
        tensor = unzipped.tensor(name) if name in done.left_out else delta.tensor(name).float()
        if name not in done.left_out and delta.whole(name) and not unzipped.whole(name):
            before = base.checkpoint.tensor(name).float()
            tensor = tensor.clone()
            tensor[: len(before)] -= before[: len(tensor)]
        found[f"change {name}"] = Near(tensor)
    finite({name: near.tensor for name, near in found.items()}, folder)
    return found
