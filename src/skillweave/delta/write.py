"""Write base + delta as an ordinary Hugging Face folder, tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from skillweave.artefact import atomic_folder
from skillweave.base.checkpoint import Checkpoint
from skillweave.base.fingerprint import fingerprint
from skillweave.base.folder import CONFIG, INDEX
from skillweave.base.open import as_dtype, resolve
from skillweave.base.quantised import QUANTISATION
from skillweave.base.safetensors_io import SHARD_BYTES, Spec, plan_files, spec_bytes, write_stream
from skillweave.delta.carry import (
    GENERATION_FILE,
    TEMPLATES_FOLDER,
    TOKENIZER_FILES,
    Carried,
    check_from_base,
    write_carried,
)
from skillweave.delta.delta import Delta
from skillweave.delta.schema import dtype_name
from skillweave.files.disk import check_room
from skillweave.files.folder import check_regular
from skillweave.files.read import read_json
from skillweave.progress import bar

_COPIED = {".json", ".jinja", ".txt", ".model"}


def write_tuned(
    base_ref: str | Path,
    delta: Delta,
    out: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write the tuned model that ``delta`` makes of its base; return the folder.

    The folder (replaced whole, atomically) opens with ``from_pretrained`` anywhere. It holds

    - weights in ``dtype`` (None: the base's dtypes, to which a small delta on bfloat16 weights is rounded coarsely), in
      files of at most ``shard_bytes``;
    - config, generation config, tokenizer and chat template of the base, or the tuned ones that the delta carries.

    Needs the memory of one tensor. Raises :class:`UserError` for another base.
    """
    folder, out = resolve(base_ref), Path(out)
    base = Checkpoint(folder)
    delta.check_base(fingerprint(folder), str(base_ref), base.config)
    tuned = delta.on(base, as_dtype(dtype))
    if delta.carried.from_base:  # raises before anything is written
        check_from_base(delta.carried, folder)

    specs = {tuned.file_name(name): (tuned.shape(name), tuned.dtype(name)) for name in tuned.names()}
    name_of = {tuned.file_name(name): name for name in tuned.names()}
    total = sum(map(spec_bytes, specs.values()))
    check_room(out, total, f"the model {out.name}")
    files = plan_files(specs, "model", shard_bytes)
    with atomic_folder(out) as temporary, bar(f"writing {out.name}", len(specs)) as advance:

        def read(file_name: str) -> torch.Tensor:
            advance()
            return tuned.tensor(name_of[file_name])

        for file, names in files.items():
            write_stream(temporary / file, {name: specs[name] for name in names}, read)
        if len(files) > 1:
            weight_map = {name: file for file, names in files.items() for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            _write_json(temporary / INDEX, index)
        _copy_side_files(folder, temporary, delta.carried)
        config = read_json(temporary / CONFIG)
        if base.dequantised:  # codes became plain numbers
            config = {key: value for key, value in config.items() if key not in QUANTISATION}
        config = with_dtype(config, main_dtype(specs))
        _write_json(temporary / CONFIG, with_vocabulary(config, tuned.token_rows))
    return out


def main_dtype(specs: Mapping[str, Spec]) -> torch.dtype | None:
    """The floating-point dtype of most numbers; None if there are no floating-point tensors."""
    numbers: Counter[torch.dtype] = Counter()
    for shape, dtype in specs.values():
        if dtype.is_floating_point:
            numbers[dtype] += torch.Size(shape).numel()
    return max(numbers, key=lambda dtype: numbers[dtype]) if numbers else None


def with_dtype(config: dict[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """A copy of a model's config, and of the configs inside it, with ``dtype`` under the keys that it has.

    Older readers use ``torch_dtype`` and newer ones ``dtype``. If the two disagreed, they would open different models.
    """
    if dtype is None:
        return config
    named: dict[str, Any] = {key: dtype_name(dtype) for key in ("dtype", "torch_dtype") if key in config} or {
        "dtype": dtype_name(dtype)
    }
    inner = {
        key: with_dtype(value, dtype)
        for key, value in config.items()
        if isinstance(value, dict) and ("dtype" in value or "torch_dtype" in value)
    }
    return {**config, **inner, **named}


def with_vocabulary(config: dict[str, Any], rows: int | None) -> dict[str, Any]:
    """A copy of a model's config with ``rows`` as ``vocab_size``, wherever the config has it; None changes nothing."""
    if rows is None:
        return config
    inner = config.get("text_config")
    if isinstance(inner, dict) and "vocab_size" in inner:
        config = {**config, "text_config": {**inner, "vocab_size": rows}}
    return {**config, "vocab_size": rows} if "vocab_size" in config or inner is None else config


def _copy_side_files(base: Path, out: Path, carried: Carried) -> None:
    """Copy config, generation config, tokenizer and licences of ``base`` to ``out``, replaced by what is carried."""
    replaced: set[str] = {GENERATION_FILE} & set(carried.files)
    if carried.has_tokenizer:
        replaced |= set(TOKENIZER_FILES)
    for file in base.iterdir():
        weights = file.name.endswith(".index.json")
        if file.is_file() and file.suffix in _COPIED and not weights and file.name not in replaced:
            check_regular(file, base)
            shutil.copyfile(file, out / file.name)
    if (base / TEMPLATES_FOLDER).is_dir() and not carried.has_tokenizer:
        (out / TEMPLATES_FOLDER).mkdir()
        for file in (base / TEMPLATES_FOLDER).glob("*.jinja"):
            shutil.copyfile(file, out / TEMPLATES_FOLDER / file.name)
    write_carried(carried, base, out)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
