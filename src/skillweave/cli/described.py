"""What is in a delta, a PEFT adapter or a model folder, as ``skillweave inspect`` shows it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from skillweave.base import Checkpoint, fingerprint, open_tokenizer
from skillweave.base.defaults import generation_config_at
from skillweave.base.ends import turn_end
from skillweave.base.open import resolve
from skillweave.base.safetensors_io import read_headers
from skillweave.cli.contents import out, show_facts
from skillweave.delta import Delta
from skillweave.delta.carry import may_travel
from skillweave.delta.schema import dtype_name, is_delta
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.progress import bar
from skillweave.skillzip.plan import plan
from skillweave.terminal import printable
from skillweave.units import human_bytes

# Options of an adapter that say nothing unusual of what it does to the weights.
_USUAL = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "task_type", "inference_mode",
    "base_model_name_or_path", "peft_version", "revision", "auto_mapping", "megatron_core", "loftq_config",
    "runtime_config", "qalora_group_size",
}  # fmt: skip
_PLAIN = {"bias": "none", "init_lora_weights": True, "init_weights": True, "ensure_weight_tying": False}


def described(folder: Path, base: str | None = None) -> dict[str, Any]:
    """What is in a delta, adapter or model folder, as JSON holds it. ``base`` is another place of a delta's base.

    Raises :class:`UserError` for a damaged folder.
    """
    if is_delta(folder):
        return _delta(folder, base)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return _adapter(folder)
    return _model(folder)


# -- deltas ------------------------------------------------------------------------------------------------------------


def _delta(folder: Path, base: str | None) -> dict[str, Any]:
    delta = Delta.from_pretrained(folder)
    ours = _base_of(delta, base)
    kept = _kept(delta, ours) if ours is not None else None
    groups: dict[str, dict[str, Any]] = {}
    with bar("reading", len(delta.names())) as advance:
        for name in delta.names():
            held = groups.setdefault(
                _group(name), {"tensors": 0, "numbers": 0, "delta": 0.0, "base": 0.0, "kept": kept and False}
            )
            held["tensors"] += 1
            held["numbers"] += math.prod(delta.shape(name))
            change, norm = _norms(delta, ours, name)
            held["delta"] = None if change is None or held["delta"] is None else held["delta"] + change**2
            held["base"] += norm**2
            held["kept"] = None if kept is None else bool(held["kept"]) or name in kept
            advance()
    for held in groups.values():
        change, norm = held.pop("delta"), held.pop("base")
        held["norm"] = None if change is None else float(f"{change**0.5:.4g}")
        held["relative"] = float(f"{(change / norm) ** 0.5:.3g}") if norm and change is not None else None
    total = sum((held["norm"] or 0.0) ** 2 for held in groups.values())
    apart = sum((held["norm"] or 0.0) ** 2 for held in groups.values() if held["kept"])
    return {
        "kind": "delta",
        "folder": str(folder),
        "form": delta.kind,
        "base": delta.base_ref,
        "base_fingerprint": delta.base_fingerprint,
        "base_at_hand": ours is not None,
        "provenance": delta.provenance,
        "tensors": len(delta.names()),
        "numbers": sum(held["numbers"] for held in groups.values()),
        "bytes": delta.nbytes,
        "token_rows": None if ours is None else delta.on(ours).token_rows,
        "base_token_rows": None if ours is None else _rows(ours),
        "travels": {name: len(data) for name, data in delta.carried.files.items()},
        "kept": None if kept is None else sorted(kept),
        "kept_share": None if kept is None or not total else float(f"{apart / total:.3g}"),
        "groups": groups,
    }


def _base_of(delta: Delta, base: str | None) -> Checkpoint | None:
    """The base of a delta, where it is at hand: named, or a folder at the place that the delta names."""
    if base is None and not Path(delta.base_ref).expanduser().is_dir():
        return None
    folder = resolve(base or delta.base_ref)
    try:
        delta.check_base(fingerprint(folder), str(folder))
    except UserError:
        if base is not None:
            raise
        return None
    checkpoint = Checkpoint(folder)
    delta.on(checkpoint)  # raises where the delta does not fit
    return checkpoint


def _kept(delta: Delta, base: Checkpoint) -> set[str]:
    """Changed tensors that a pack does not write as matrices: it keeps them as they are, or leaves them out."""
    return set(delta.names()) - {piece.tensor for piece in plan(delta, base, base.skeleton).pieces.values()}


def _norms(delta: Delta, base: Checkpoint | None, name: str) -> tuple[float | None, float]:
    """The norm of one tensor's change (None: not known without the base) and of the base's tensor (0: not known).

    Added rows count as a change from nothing.
    """
    change = delta.tensor(name).float()
    if base is None:
        return (None if delta.whole(name) else float(change.norm())), 0.0
    ours = base.tensor(name).float().cpu()
    if delta.whole(name):
        shared = min(len(ours), len(change)) if ours.dim() else None
        if shared is None:
            change = change - ours
        else:
            change[:shared] -= ours[:shared]
    return float(change.norm()), float(ours.norm())


def _group(name: str) -> str:
    """A tensor's name with a star for each number in it: the layers of a model are one group."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def _rows(checkpoint: Checkpoint) -> int:
    return checkpoint.skeleton.get_input_embeddings().weight.shape[0]


# -- adapters ----------------------------------------------------------------------------------------------------------


def _adapter(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "adapter_config.json")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'adapter_config.json'}: expected an object with keys")
    file = folder / "adapter_model.safetensors"
    headers = read_headers(file) if file.is_file() else {}
    factors = [name for name in headers if re.search(r"\.(lora|hada|lokr|oft|boft|vera|ia3)_", name)]
    rest = [name.removeprefix("base_model.model.") for name in headers if name not in factors]
    unusual = {
        key: value
        for key, value in config.items()
        if key not in _USUAL and value not in (None, False, {}, [], "") and value != _PLAIN.get(key)
    }
    strange = [] if file.is_file() else [f"{file.name} is missing: pickle is not read"]
    if rest:
        strange.append(f"{len(rest)} tensors are stored beside the factors, whole: {', '.join(rest[:3])}")
    layers = Counter(_layer(name) for name in factors)
    return {
        "kind": "adapter",
        "folder": str(folder),
        "form": config.get("peft_type"),
        "base": config.get("base_model_name_or_path"),
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "ranks_stored": sorted(
            {shape[0] for name, (shape, _) in headers.items() if "lora_A" in name and len(shape) == 2}
        ),
        "target_modules": config.get("target_modules"),
        "layers": dict(sorted(layers.items())),
        "tensors": len(headers),
        "numbers": sum(math.prod(shape) for shape, _ in headers.values()),
        "dtypes": sorted({dtype_name(dtype) for _, dtype in headers.values()}),
        "bytes": file.stat().st_size if file.is_file() else 0,
        "travels": _travelling(folder),
        "unusual": unusual,
        "strange": strange,
    }


def _layer(name: str) -> str:
    """The kind of module that a factor belongs to: the last part of its name before the factor's own."""
    parts = re.split(r"\.(?:lora|hada|lokr|oft|boft|vera|ia3)_", name)[0].split(".")
    return parts[-1]


def _travelling(folder: Path) -> dict[str, int]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    named = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    return {name: size for name, size in sorted(named.items()) if may_travel(name)}


# -- models ------------------------------------------------------------------------------------------------------------


def _model(folder: Path) -> dict[str, Any]:
    checkpoint = Checkpoint(folder)
    numbers: Counter[str] = Counter()
    for name in checkpoint.names():
        numbers[dtype_name(checkpoint.dtype(name))] += math.prod(checkpoint.shape(name))
    config = read_json(folder / "config.json")
    generation = generation_config_at(folder)
    ends = {
        "config.json": config.get("eos_token_id"),
        "generation_config.json": None if generation is None else generation.eos_token_id,
    }
    rows, strange = _rows(checkpoint), []
    spoken: dict[str, Any] = {"tokenizer": None}
    try:
        tokenizer = open_tokenizer(folder)
    except UserError as error:
        strange.append(str(error))
    else:
        templates = getattr(tokenizer, "chat_template", None)
        names = sorted(templates) if isinstance(templates, dict) else ["default"] if templates else []
        spoken = {
            "tokenizer": type(tokenizer).__name__, "tokens": len(tokenizer), "chat_templates": names,
            "turn_end": turn_end(tokenizer),
        }  # fmt: skip
        ends["tokenizer"] = tokenizer.eos_token_id
        strange += _without_rows(tokenizer, rows)
    strange += [*_unlike_dtypes(config, numbers), *_beside(folder)]
    return {
        "kind": "model",
        "folder": str(folder),
        "architecture": (config.get("architectures") or [type(checkpoint.skeleton).__name__])[0],
        "fingerprint": fingerprint(folder),
        "tensors": len(checkpoint.names()),
        "numbers": sum(numbers.values()),
        "dtypes": dict(numbers),
        "tied": dict(checkpoint.tied),
        "token_rows": rows,
        "context": getattr(checkpoint.config.get_text_config(), "max_position_embeddings", None),
        **spoken,
        "end_tokens": ends,
        "strange": strange,
    }


def _without_rows(tokenizer: Any, rows: int) -> list[str]:
    lost = sorted((id_, token) for token, id_ in tokenizer.get_vocab().items() if id_ >= rows)
    if not lost:
        return []
    shown = ", ".join(token for _, token in lost[:3]) + (", ..." if len(lost) > 3 else "")
    return [f"the embedding has {rows} rows, and {len(lost)} of the tokenizer's tokens have none: {shown}"]


def _unlike_dtypes(config: Mapping[str, Any], numbers: Mapping[str, int]) -> list[str]:
    named = {key: config[key] for key in ("dtype", "torch_dtype") if config.get(key)}
    told = []
    if len(set(named.values())) > 1:
        told.append(f"config.json names two dtypes: {named}")
    if named and not set(named.values()) & set(numbers):
        told.append(f"config.json says {', '.join(map(str, named.values()))}, the files hold {', '.join(numbers)}")
    return told


def _beside(folder: Path) -> list[str]:
    told = []
    if pickles := sorted(file.name for file in folder.glob("*.bin")):
        told.append(f"weights as pickle are not read: {pickles[0]}")
    return told


# -- on the screen -----------------------------------------------------------------------------------------------------


def show_described(found: Mapping[str, Any], *, tensors: bool = False) -> None:
    """Print what :func:`described` found."""
    {"delta": _show_delta, "adapter": _show_adapter, "model": _show_model}[found["kind"]](found)
    if tensors and found["kind"] == "delta":
        for name in found["kept"] or []:
            out.print(Text(printable(f"no matrix: {name}")))


def _show_delta(found: Mapping[str, Any]) -> None:
    at_hand = "" if found["base_at_hand"] else "; not at hand: name it with --base to see shares"
    rows = found["token_rows"]
    kept = found["kept"]
    share = found["kept_share"]
    show_facts(
        [
            ("delta", f"{found['folder']} ({found['form']})"),
            ("base", f"{found['base']} ({found['base_fingerprint'][:23]}...){at_hand}"),
            *((key, _short(value)) for key, value in found["provenance"].items()),
            ("changed", f"{found['tensors']} tensors, {found['numbers']:,} numbers, {human_bytes(found['bytes'])}"),
            *([("token rows", f"{rows}, the base has {found['base_token_rows']}")] if rows else []),
            *_travel_facts(found["travels"]),
            *([("no matrices", _kept_words(kept, share))] if kept else []),
        ]
    )
    table = RichTable(box=SIMPLE_HEAD)
    table.add_column("tensors", overflow="fold")
    for column in ("number", "numbers", "norm", "of the base's", "in a pack"):
        table.add_column(column, justify="right")
    for name, held in found["groups"].items():
        place = {None: "?", True: "as they are", False: "low rank"}[held["kept"]]
        norm, share = ("?" if held[key] is None else f"{held[key]:.3g}" for key in ("norm", "relative"))
        table.add_row(Text(printable(name)), str(held["tensors"]), f"{held['numbers']:,}", norm, share, place)
    out.print(table)


def _kept_words(kept: list[str], share: float | None) -> str:
    size = "" if share is None else f", {share:.1%} of the squared norm of the delta"
    return f"{len(kept)} tensors{size}: a pack keeps them as they are (other=keep) or leaves them out (other=drop)"


def _show_adapter(found: Mapping[str, Any]) -> None:
    ranks = found["ranks_stored"] or [found["rank"]]
    layers = ", ".join(f"{name} ({count} tensors)" for name, count in found["layers"].items()) or "none found"
    show_facts(
        [
            ("adapter", f"{found['folder']} ({found['form']})"),
            ("base", f"{found['base']} (a name only: an adapter does not know its base's fingerprint)"),
            ("rank", f"{', '.join(map(str, ranks))}; alpha {found['alpha']}"),
            ("layers", layers),
            ("stored", f"{found['tensors']} tensors, {found['numbers']:,} numbers, {human_bytes(found['bytes'])}, "
             f"{', '.join(found['dtypes'])}"),
            *_travel_facts(found["travels"]),
            *(("unusual", f"{key}: {_short(value)}") for key, value in found["unusual"].items()),
            *(("note", told) for told in found["strange"]),
        ]
    )  # fmt: skip


def _show_model(found: Mapping[str, Any]) -> None:
    held = ", ".join(f"{count:,} in {dtype}" for dtype, count in found["dtypes"].items())
    speaks = "none that opens"
    if found["tokenizer"]:
        templates = ", ".join(found["chat_templates"]) or "no chat template"
        speaks = (
            f"{found['tokenizer']}, {found['tokens']:,} tokens; {templates}; a turn ends with {found['turn_end']!r}"
        )
    ends = "; ".join(f"{place}: {value}" for place, value in found["end_tokens"].items())
    show_facts(
        [
            ("model", str(found["folder"])),
            ("architecture", f"{found['architecture']}, context {found['context']}"),
            ("numbers", f"{found['numbers']:,} in {found['tensors']} tensors ({held})"),
            ("fingerprint", found["fingerprint"]),
            ("token rows", f"{found['token_rows']:,}" + (", tied to the head" if found["tied"] else "")),
            ("tokenizer", speaks),
            ("end tokens", ends),
            *(("note", told) for told in found["strange"]),
        ]
    )


def _travel_facts(files: Mapping[str, int]) -> Iterable[tuple[str, str]]:
    if files:
        yield "travels along", f"{', '.join(files)} ({human_bytes(sum(files.values()))})"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."
