"""Read and print what is in a delta, a PEFT adapter or a model folder, for ``skillweave inspect``.

First the facts of each kind as JSON, then the functions that print them.
"""

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
from skillweave.base.sizes import context_length, embedding_rows
from skillweave.cli.output import out, show_facts
from skillweave.delta import Delta
from skillweave.delta.carry import may_travel
from skillweave.delta.schema import dtype_name, is_delta
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.progress import bar
from skillweave.skillzip.plan import plan
from skillweave.terminal import printable
from skillweave.units import human_bytes

# Options of an adapter that are not unusual, whatever their value.
_USUAL = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "task_type", "inference_mode",
    "base_model_name_or_path", "peft_version", "revision", "auto_mapping", "megatron_core", "loftq_config",
    "runtime_config", "qalora_group_size",
}  # fmt: skip
# Options of an adapter that are unusual only with another value.
_PLAIN = {"bias": "none", "init_lora_weights": True, "init_weights": True, "ensure_weight_tying": False}


def described(folder: Path, base: str | None = None) -> dict[str, Any]:
    """The contents of a delta, adapter or model folder, ready for JSON.

    ``base`` is the place of a delta's base, if it is not where the delta says. Raises :class:`UserError` for a damaged
    folder.
    """
    if is_delta(folder):
        return _delta(folder, base)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return _adapter(folder)
    return _model(folder)


# -- deltas ------------------------------------------------------------------------------------------------------------


def _delta(folder: Path, base: str | None) -> dict[str, Any]:
    delta = Delta.from_pretrained(folder)
    checkpoint = _base_of(delta, base)
    kept = _kept(delta, checkpoint) if checkpoint is not None else None
    groups: dict[str, dict[str, Any]] = {}
    with bar("reading", len(delta.names())) as advance:
        for name in delta.names():
            group = groups.setdefault(
                _group(name), {"tensors": 0, "numbers": 0, "delta": 0.0, "base": 0.0, "kept": kept and False}
            )
            group["tensors"] += 1
            group["numbers"] += math.prod(delta.shape(name))
            change, norm = _norms(delta, checkpoint, name)
            group["delta"] = None if change is None or group["delta"] is None else group["delta"] + change**2
            group["base"] += norm**2
            group["kept"] = None if kept is None else bool(group["kept"]) or name in kept
            advance()
    for group in groups.values():
        change, norm = group.pop("delta"), group.pop("base")
        group["norm"] = None if change is None else float(f"{change**0.5:.4g}")
        group["relative"] = float(f"{(change / norm) ** 0.5:.3g}") if norm and change is not None else None
    total = sum((group["norm"] or 0.0) ** 2 for group in groups.values())
    apart = sum((group["norm"] or 0.0) ** 2 for group in groups.values() if group["kept"])
    return {
        "kind": "delta",
        "folder": str(folder),
        "form": delta.kind,
        "base": delta.base_ref,
        "base_fingerprint": delta.base_fingerprint,
        "base_at_hand": checkpoint is not None,
        "provenance": delta.provenance,
        "tensors": len(delta.names()),
        "numbers": sum(group["numbers"] for group in groups.values()),
        "bytes": delta.nbytes,
        "token_rows": None if checkpoint is None else delta.on(checkpoint).token_rows,
        "base_token_rows": None if checkpoint is None else embedding_rows(checkpoint.skeleton),
        "travels": {name: len(data) for name, data in delta.carried.files.items()},
        "kept": None if kept is None else sorted(kept),
        "kept_share": None if kept is None or not total else float(f"{apart / total:.3g}"),
        "groups": groups,
    }


def _base_of(delta: Delta, base: str | None) -> Checkpoint | None:
    """The base of a delta, or None if it is not available. It is at ``base``, or in the folder that the delta names."""
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
    """The changed tensors that a pack does not write as matrices: it keeps them as they are or leaves them out."""
    return set(delta.names()) - {piece.tensor for piece in plan(delta, base, base.skeleton).pieces.values()}


def _norms(delta: Delta, base: Checkpoint | None, name: str) -> tuple[float | None, float]:
    """The norm of a tensor's change (None if it is not known without the base) and of the base's tensor (0 if unknown).

    Added rows count as a change from zero.
    """
    change = delta.tensor(name).float()
    if base is None:
        return (None if delta.whole(name) else float(change.norm())), 0.0
    before = base.tensor(name).float().cpu()
    if delta.whole(name):
        shared = min(len(before), len(change)) if before.dim() else None
        if shared is None:
            change = change - before
        else:
            change[:shared] -= before[:shared]
    return float(change.norm()), float(before.norm())


def _group(name: str) -> str:
    """A tensor's name with a star for each number in it, so the layers of a model form one group."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


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
    strange = [] if file.is_file() else [f"{file.name} is missing; a pickle file is not read"]
    if rest:
        strange.append(f"{len(rest)} tensors are stored complete, beside the factors: {', '.join(rest[:3])}")
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
    """The kind of module that a factor belongs to: the last part of the name before the factor's own part."""
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
    rows, strange = embedding_rows(checkpoint.skeleton), []
    language: dict[str, Any] = {"tokenizer": None}
    try:
        tokenizer = open_tokenizer(folder)
    except UserError as error:
        strange.append(str(error))
    else:
        templates = getattr(tokenizer, "chat_template", None)
        names = sorted(templates) if isinstance(templates, dict) else ["default"] if templates else []
        language = {
            "tokenizer": type(tokenizer).__name__,
            "tokens": len(tokenizer),
            "chat_templates": names,
            "turn_end": turn_end(tokenizer),
        }
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
        "context": context_length(checkpoint.skeleton),
        **language,
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
    notes = []
    if len(set(named.values())) > 1:
        notes.append(f"config.json names two dtypes: {named}")
    if named and not set(named.values()) & set(numbers):
        notes.append(f"config.json says {', '.join(map(str, named.values()))}, the files hold {', '.join(numbers)}")
    return notes


def _beside(folder: Path) -> list[str]:
    notes = []
    if pickles := sorted(file.name for file in folder.glob("*.bin")):
        notes.append(f"weights in pickle files are not read: {pickles[0]}")
    return notes


# -- on the screen -----------------------------------------------------------------------------------------------------


def show_described(facts: Mapping[str, Any], *, tensors: bool = False) -> None:
    """Print the result of :func:`described`, and with ``tensors`` also a delta's tensors that are not matrices."""
    {"delta": _show_delta, "adapter": _show_adapter, "model": _show_model}[facts["kind"]](facts)
    if tensors and facts["kind"] == "delta":
        for name in facts["kept"] or []:
            out.print(Text(printable(f"not a matrix: {name}")))


def _show_delta(facts: Mapping[str, Any]) -> None:
    at_hand = "" if facts["base_at_hand"] else "; not found: name it with --base to see shares"
    rows = facts["token_rows"]
    kept = facts["kept"]
    share = facts["kept_share"]
    show_facts(
        [
            ("delta", f"{facts['folder']} ({facts['form']})"),
            ("base", f"{facts['base']} ({facts['base_fingerprint'][:23]}...){at_hand}"),
            *((key, _short(value)) for key, value in facts["provenance"].items()),
            ("changed", f"{facts['tensors']} tensors, {facts['numbers']:,} numbers, {human_bytes(facts['bytes'])}"),
            *([("token rows", f"{rows}, the base has {facts['base_token_rows']}")] if rows else []),
            *_travel_facts(facts["travels"]),
            *([("not matrices", _kept_words(kept, share))] if kept else []),
        ]
    )
    table = RichTable(box=SIMPLE_HEAD)
    table.add_column("tensors", overflow="fold")
    for column in ("number", "numbers", "norm", "of the base's", "in a pack"):
        table.add_column(column, justify="right")
    for name, group in facts["groups"].items():
        place = {None: "?", True: "as they are", False: "low rank"}[group["kept"]]
        norm, share = ("?" if group[key] is None else f"{group[key]:.3g}" for key in ("norm", "relative"))
        table.add_row(Text(printable(name)), str(group["tensors"]), f"{group['numbers']:,}", norm, share, place)
    out.print(table)


def _kept_words(kept: list[str], share: float | None) -> str:
    size = "" if share is None else f", {share:.1%} of the squared norm of the delta"
    return f"{len(kept)} tensors{size}: a pack keeps them as they are (other=keep) or leaves them out (other=drop)"


def _show_adapter(facts: Mapping[str, Any]) -> None:
    ranks = facts["ranks_stored"] or [facts["rank"]]
    layers = ", ".join(f"{name} ({count} tensors)" for name, count in facts["layers"].items()) or "none found"
    show_facts(
        [
            ("adapter", f"{facts['folder']} ({facts['form']})"),
            ("base", f"{facts['base']} (only a name: an adapter does not have its base's fingerprint)"),
            ("rank", f"{', '.join(map(str, ranks))}; alpha {facts['alpha']}"),
            ("layers", layers),
            (
                "stored",
                f"{facts['tensors']} tensors, {facts['numbers']:,} numbers, {human_bytes(facts['bytes'])}, "
                f"{', '.join(facts['dtypes'])}",
            ),
            *_travel_facts(facts["travels"]),
            *(("unusual", f"{key}: {_short(value)}") for key, value in facts["unusual"].items()),
            *(("note", note) for note in facts["strange"]),
        ]
    )


def _show_model(facts: Mapping[str, Any]) -> None:
    dtypes = ", ".join(f"{count:,} in {dtype}" for dtype, count in facts["dtypes"].items())
    tokenizer = "none that can be opened"
    if facts["tokenizer"]:
        templates = ", ".join(facts["chat_templates"]) or "no chat template"
        tokenizer = (
            f"{facts['tokenizer']}, {facts['tokens']:,} tokens; {templates}; a turn ends with {facts['turn_end']!r}"
        )
    ends = "; ".join(f"{place}: {value}" for place, value in facts["end_tokens"].items())
    show_facts(
        [
            ("model", str(facts["folder"])),
            ("architecture", f"{facts['architecture']}, context {facts['context']}"),
            ("numbers", f"{facts['numbers']:,} in {facts['tensors']} tensors ({dtypes})"),
            ("fingerprint", facts["fingerprint"]),
            ("token rows", f"{facts['token_rows']:,}" + (", tied to the head" if facts["tied"] else "")),
            ("tokenizer", tokenizer),
            ("end tokens", ends),
            *(("note", note) for note in facts["strange"]),
        ]
    )


def _travel_facts(files: Mapping[str, int]) -> Iterable[tuple[str, str]]:
    if files:
        yield "files with it", f"{', '.join(files)} ({human_bytes(sum(files.values()))})"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."
