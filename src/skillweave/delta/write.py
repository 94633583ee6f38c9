"""Write base + delta as an ordinary Hugging Face folder, tensor by tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from skillweave.base.checkpoint import Checkpoint
from skillweave.base.fingerprint import fingerprint
from skillweave.base.open import as_dtype, resolve
from skillweave.delta.arithmetic import applied
from skillweave.delta.carry import TOKENIZER_FILES
from skillweave.delta.schema import dtype_name
from skillweave.delta.stream import SHARD_BYTES, plan_files, spec_bytes, write_stream
from skillweave.files.disk import check_room
from skillweave.files.read import read_json
from skillweave.files.write import atomic_folder
from skillweave.progress import bar

if TYPE_CHECKING:
    from skillweave.delta.delta import Delta

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

    The folder (replaced whole, atomically) opens with ``from_pretrained`` anywhere: weights in ``dtype`` (None: the
    base's dtypes, to which a small delta on bfloat16 weights is rounded coarsely), in files of at most
    ``shard_bytes``; config, generation config, tokenizer and chat template of the base, or the tuned
    ones that the delta carries. Needs the memory of one tensor. Raises :class:`UserError` for another base.
    """
    folder, out = resolve(base_ref), Path(out)
    delta.check_base(fingerprint(folder), str(base_ref))
    base = Checkpoint(folder)
    delta.check_fits(base)
    wanted = as_dtype(dtype)

    def written(name: str) -> torch.dtype:
        stored = base.dtype(name)
        return wanted if wanted is not None and stored.is_floating_point else stored

    specs = {
        name: (delta.shape(name) if delta.whole(name) else base.shape(name), written(name)) for name in base.names()
    }
    check_room(out, sum(spec_bytes(spec) for spec in specs.values()), "the model")
    files = plan_files(specs, "model", shard_bytes)
    with atomic_folder(out) as temporary, bar(f"writing {out.name}", len(specs)) as advance:

        def read(name: str) -> torch.Tensor:
            advance()
            if name not in delta:
                return base.tensor(name).to(written(name))
            if delta.whole(name):
                return delta.tensor(name).to(written(name))
            return applied(base.tensor(name).to(written(name)), delta.tensor(name))

        for file, names in files.items():
            write_stream(temporary / file, {name: specs[name] for name in names}, read)
        if len(files) > 1:
            index = {
                "metadata": {"total_size": sum(spec_bytes(spec) for spec in specs.values())},
                "weight_map": {name: file for file, names in files.items() for name in names},
            }
            _write(temporary / "model.safetensors.index.json", index)
        _copy_side_files(folder, temporary, delta)
        changes = {"vocab_size": delta.vocabulary_size(base), "dtype": wanted and dtype_name(wanted)}
        config = read_json(temporary / "config.json")
        _write(temporary / "config.json", {**config, **{key: new for key, new in changes.items() if new is not None}})
    return out


def _copy_side_files(base: Path, out: Path, delta: Delta) -> None:
    replaced = {file.name for file in delta.carried}
    if replaced & set(TOKENIZER_FILES):
        replaced |= set(TOKENIZER_FILES)
    for file in base.iterdir():
        weights = file.name.endswith(".index.json")
        if file.is_file() and file.suffix in _COPIED and not weights and file.name not in replaced:
            shutil.copyfile(file, out / file.name)
    for file in delta.carried:
        shutil.copyfile(file, out / file.name)


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
