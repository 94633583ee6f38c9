"""Open a base model by its reference: a folder, a hub id, a GGUF file or a bundled model."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from skillweave.base.allocator import release_freed_memory
from skillweave.base.bundled import BUNDLED, bundled, from_gguf
from skillweave.base.checkpoint import Checkpoint
from skillweave.base.fingerprint import fingerprint
from skillweave.base.folder import CONFIG, check_entries, what_it_is
from skillweave.base.hub import download
from skillweave.base.load import load_model
from skillweave.base.precision import automatic_dtype, multiply_in_float32, products_are_float32
from skillweave.base.sizes import embedding_rows
from skillweave.base.tokens import check_growth, is_panic
from skillweave.errors import UserError, nearest
from skillweave.files.read import home_path, is_file, is_folder, open_file, read_json, read_text, wide_text
from skillweave.files.recover import settle
from skillweave.progress import say_once

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
AUTO = "auto"
_READ_BY_TRANSFORMERS = (
    "config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.jinja",
)
"""Text files that transformers opens itself when it opens a tokenizer."""
_FORMS = (
    "a Hugging Face folder, a hub id (owner/name), a .gguf file or a bundled model "
    f"({', '.join(f'bundled:{name}' for name in BUNDLED)})"
)


@dataclass
class Base:
    """An open base model.

    Attributes:
        model: A causal LM in eval mode.
        tokenizer: Its tokenizer, which has a pad token.
        fingerprint: That of the files at ``path``, whatever dtype they were loaded in; see also ``in_memory``.
        ref: The name that the base was opened by, for messages and cards.
        path: The folder of its files.
        in_memory: Whether a delta was applied. The fingerprint is then that of the tuned model, and only the config
            (and the tokenizer, unless the delta carries one) are still those at ``path``.
    """

    model: Any
    tokenizer: Any
    fingerprint: str
    ref: str
    path: Path
    in_memory: bool = False
    files: Checkpoint | None = field(default=None, repr=False, compare=False)
    """The checkpoint that the model was loaded from, if it was opened by :func:`open_base`."""

    @property
    def nbytes(self) -> int:
        """Bytes of the model's parameters and buffers in memory, tied ones once."""
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))

    @property
    def checkpoint(self) -> Checkpoint:
        """The tensors that the fingerprint stands for: the files', or the model's after a delta was applied.

        Raises :class:`UserError` if these values are lost, because the tuned model was put into int8.
        """
        if self.in_memory:
            if any(parameter.dtype is torch.int8 for parameter in self.model.parameters()):
                raise UserError(
                    f"the tensors of {self.ref} were rounded to int8 in memory, so what they were is lost: open the "
                    f"base again without backbone int8"
                )
            return Checkpoint(self.model)
        return self.files or Checkpoint(self.path)


def resolve(ref: str | Path) -> Path:
    """The Hugging Face folder behind a reference, downloaded or converted if necessary.

    ``ref`` is a folder, a hub id ``owner/name``, a ``.gguf`` file or ``bundled:smollm2``. Raises :class:`UserError`.
    """
    text = str(ref)
    if text.startswith("bundled:"):
        return bundled(text.removeprefix("bundled:"))
    path = home_path(text)
    settle(path)
    if is_folder(path):
        return path
    if is_file(path):
        if path.suffix == ".gguf":
            return from_gguf(path)
        raise UserError(f"{path} is a file, but not a model: name {_FORMS}")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text) and path.suffix != ".gguf":
        return _from_hub(text)
    hint = nearest(text, [f"bundled:{name}" for name in BUNDLED] + list(BUNDLED))
    hint = f" ({hint})".replace("'smollm2'", "'bundled:smollm2'") if hint.startswith("did") else ""
    raise UserError(f"no model is found at '{text}'{hint}: name {_FORMS}")


def open_base(
    ref: str | Path,
    *,
    dtype: str | torch.dtype | None = AUTO,
    device: str | torch.device | None = None,
    budget: int | None = None,
) -> Base:
    """An open base model, ready to be used.

    Args:
        ref: See :func:`resolve`.
        dtype: The dtype of the weights in memory: ``"float32"``, ``"bfloat16"``, ``"float16"``, a torch dtype, or
            ``"auto"`` (the same as None). That is the files' own dtype if the device computes in it, else float32; or
            the files' own again if float32 would not fit ``budget``. On a CPU without bfloat16 arithmetic, products
            with narrow weights are computed in float32 (:mod:`skillweave.base.precision`).
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; None is the first GPU, or the CPU if there is no GPU.
        budget: Bytes for the weights, see ``dtype``.

    Raises :class:`UserError`, also if a tensor of the model is missing: transformers would initialise it at random.
    """
    # Check the arguments first: a typo is cheap to find, loading a model is not.
    wanted, place = as_dtype(dtype), as_device(device)
    path = resolve(ref)
    files = Checkpoint(path)
    tokenizer = _tokenizer(path)
    files_fingerprint = fingerprint(files)
    model = load_model(files, wanted)
    if wanted is None:
        nbytes = sum(parameter.nbytes for parameter in model.parameters())
        chosen = automatic_dtype(model.dtype, place, nbytes, budget)
        if chosen is not model.dtype:  # a cast to its own dtype would also narrow what transformers keeps in float32
            model = model.to(chosen)
            _restore_wide(model, files)
    try:
        model = model.eval().to(place)
    except torch.OutOfMemoryError as error:
        raise UserError(f"{ref} does not fit the memory of {place}: try dtype bfloat16 or another device") from error
    if products_are_float32(model.dtype, place):
        multiply_in_float32(model)
    _pad_within(tokenizer, embedding_rows(model), path)
    local = Path(str(ref)).expanduser()
    name = str(local.resolve()) if local.exists() else str(ref)
    release_freed_memory()
    return Base(model, tokenizer, files_fingerprint, name, path, files=files)


@torch.no_grad()
def _restore_wide(model: Any, files: Checkpoint) -> None:
    """Restore the tensors that the files hold in float32: transformers rounded them to the dtype of the others."""
    state = model.state_dict()
    for name in files.names():
        if name in state and files.dtype(name) is torch.float32:
            state[name].copy_(files.tensor(name))


def _pad_within(tokenizer: Any, rows: int, path: Path) -> None:
    """Pad with the end token if the tokenizer's pad token was added to the tokenizer and never to the model."""
    if tokenizer.pad_token_id >= rows > tokenizer.eos_token_id:
        say_once(
            f"{path}: the model has no row for the pad token {tokenizer.pad_token!r} (id {tokenizer.pad_token_id} of "
            f"{rows}); {tokenizer.eos_token!r} pads in its place"
        )
        tokenizer.pad_token = tokenizer.eos_token


def open_tokenizer(ref: str | Path) -> Any:
    """The tokenizer of a base. If it has no pad token, the end token is used for padding."""
    return _tokenizer(resolve(ref))


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype from its name; None for ``"auto"`` and None."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype == AUTO:
        return None
    if dtype not in _DTYPES:
        raise UserError(f"unknown dtype '{dtype}'; {nearest(dtype, [AUTO, *_DTYPES])}")
    return _DTYPES[dtype]


def as_device(device: str | torch.device | None) -> torch.device:
    """A device of this machine; None is the first GPU, or the CPU. Raises :class:`UserError` if it does not exist."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device '{device}': write cpu, cuda, cuda:0, ... or mps") from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (wanted.index or 0) >= counts.get(wanted.type, 0):
        have = ", ".join(f"{kind} ({number})" for kind, number in counts.items() if number)
        raise UserError(f"this machine has no device '{device}'; it has: {have}")
    return wanted


def _tokenizer(path: Path) -> Any:
    if path.is_dir():
        check_entries(path)
    _check_starts(path)
    for file in (path / "tokenizer_config.json", path / "special_tokens_map.json"):
        if file.is_file():
            _check_keys(read_json(file), file)
    config_file = path / "tokenizer_config.json"
    settings = read_json(config_file) if config_file.is_file() else {}
    if not isinstance(settings, dict):
        raise UserError(f"{config_file}: expected a JSON object. Copy the file from the base again.")
    longest = settings.get("model_max_length", 0)
    if not isinstance(longest, int | float | None):
        raise UserError(f"{config_file}: model_max_length is {longest!r:.40}, expected a number. Correct it.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except BaseException as error:
        # Two libraries read the files, one of them in Rust, and each raises errors of its own.
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        if not any((path / name).is_file() for name in (CONFIG, "tokenizer.json", config_file.name)):
            raise UserError(what_it_is(path)) from error
        _find_damage(path)
        why = (str(error).splitlines() or [type(error).__name__])[0]
        if settings.get("auto_map"):
            why = (
                f"it needs code that lies in the folder ('auto_map' in {config_file.name}), and such code is never run"
            )
        raise UserError(
            f"{path} has no tokenizer that transformers opens: copy tokenizer.json and tokenizer_config.json into it. "
            f"({why})"
        ) from error
    check_growth(tokenizer, path)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{path}: the tokenizer names no end token; set 'eos_token' in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_starts(path: Path) -> None:
    """Raise :class:`UserError` for a file that transformers would read otherwise than we do, by its first bytes."""
    for file in filter(is_file, (path / name for name in _READ_BY_TRANSFORMERS)):
        with open_file(file) as opened:
            start = opened.read(4)
        if wide := wide_text(start):
            raise UserError(f"{file}: {wide}")
        if start.startswith(codecs.BOM_UTF8):
            raise UserError(
                f"{file} begins with a byte order mark, which transformers takes for a part of the text: save the file "
                f"as UTF-8 without one"
            )


def _find_damage(path: Path) -> None:
    """Raise :class:`UserError`, with the file and the line, if a file of the tokenizer is not text or not JSON."""
    for file in filter(is_file, (path / name for name in _READ_BY_TRANSFORMERS)):
        (read_json if file.suffix == ".json" else read_text)(file)


def _check_keys(value: Any, file: Path) -> None:
    """Raise :class:`UserError` for a key with control characters: the tokenizers library would print it unescaped."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not key.isprintable():
                raise UserError(
                    f"{file}: the key {key[:40]!a} holds control characters. Copy the file from the base again."
                )
            _check_keys(inner, file)
    elif isinstance(value, list):
        for inner in value:
            _check_keys(inner, file)


def _from_hub(name: str) -> Path:
    """Download those files of a hub repository that SkillWeave opens."""
    parts = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    offline = f"a folder, a .gguf file or bundled:{next(iter(BUNDLED))}"
    return download(name, parts, what="model", forms=_FORMS, offline=offline)
