"""A PEFT LoRA adapter as a delta: what W + s B A changes, tensor by tensor.

LoRA (Hu et al., arXiv:2106.09685): s = alpha / r; with rank stabilisation (Kalajdzievski, arXiv:2312.03732)
s = alpha / sqrt(r). Only adapters for which that sum is the whole truth are read; the others are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from skillweave.base.checkpoint import Checkpoint, open_safetensors, read_headers
from skillweave.delta.stream import Spec, spec_bytes
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.patterns import pattern_key

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_FACTORS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
}
# Options of LoraConfig under which B A is not the change of W, or not a change of one matrix.
_REFUSED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)
# The other initialisations (pissa, olora, corda, loftq, ...) write into the base weights before training starts.
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class _Pair:
    """Names of the factors in the file, the scale s, and how B A lies against W."""

    a: str
    b: str
    scale: float
    transposed: bool


class Adapter(Mapping[str, torch.Tensor]):
    """An adapter folder as a mapping: name of a base tensor -> its change, float32, computed on access.

    ``whole`` names the tensors that the adapter holds in full (``modules_to_save``, biases, embeddings that PEFT saved
    beside their factors): they map to the tuned tensor itself. ``transposed(name)`` tells whether W is stored
    (in, out) like GPT-2's; take it from the base with :func:`orientation`. Raises :class:`UserError` for an adapter
    that is no plain LoRA.
    """

    def __init__(self, folder: Path, transposed: Callable[[str], bool]) -> None:
        self.folder = folder
        self.config = _read_config(folder)
        self.file = folder / WEIGHTS_FILE
        self.headers = read_headers(self.file)
        factors, self._whole_names = _sort_names(self.headers, self.file)
        self._pairs = {
            name: _pair(name, parts, self.config, self.headers, transposed(name), self.file)
            for name, parts in factors.items()
        }
        self.whole = frozenset(self._whole_names)

    @property
    def transposed(self) -> dict[str, bool]:
        """For each LoRA tensor: whether its base stores it (in, out)."""
        return {name: pair.transposed for name, pair in self._pairs.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the adapter's tensors at their stored dtypes."""
        return sum(spec_bytes(spec) for spec in self.headers.values())

    @property
    def specs(self) -> dict[str, Spec]:
        """Shape and dtype of what each name maps to."""
        return {name: self._spec(name) for name in self}

    def _spec(self, name: str) -> Spec:
        if name not in self._pairs:
            return self.headers[self._whole_names[name]]
        pair = self._pairs[name]
        shape = (self.headers[pair.b][0][0], self.headers[pair.a][0][1])
        return (shape[::-1] if pair.transposed else shape), torch.float32

    def __getitem__(self, name: str) -> torch.Tensor:
        with open_safetensors(self.file) as handle:
            if name not in self._pairs:
                return handle.get_tensor(self._whole_names[name])
            stored = handle.get_tensor(self._whole_names[name]) if name in self.whole else None
            pair = self._pairs[name]
            change = handle.get_tensor(pair.b).float() @ handle.get_tensor(pair.a).float() * pair.scale
        change = change.T.contiguous() if pair.transposed else change
        return change if stored is None else stored.float() + change

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._pairs.keys() | self._whole_names.keys()))

    def __len__(self) -> int:
        return len(self._pairs.keys() | self._whole_names.keys())


def orientation(base: Checkpoint) -> Callable[[str], bool]:
    """A function that tells, for the name of a matrix, whether ``base`` stores it (in, out).

    That is so for transformers' ``Conv1D`` (GPT-2) and for embeddings, whose factors PEFT writes the other way
    round. The module's class decides: PEFT's own flag ``fan_in_fan_out`` is one for all modules.
    """
    from transformers.pytorch_utils import Conv1D

    modules = dict(base.skeleton.named_modules(remove_duplicate=False))
    return lambda name: isinstance(modules.get(name.removesuffix(".weight")), Conv1D | torch.nn.Embedding)


def check_fits(adapter: Adapter, base: Checkpoint) -> None:
    """Raise :class:`UserError` for a tensor of the adapter that ``base`` lacks, ties, or has in another shape."""
    vocabulary = base.vocabulary_names()
    ends = {**base.tied, **{source: target for target, source in base.tied.items()}}
    for name, (shape, _) in adapter.specs.items():
        if name in ends:
            raise UserError(
                f"{adapter.file} changes '{name}', which {base.where} ties to '{ends[name]}': the adapter changes one "
                f"of the two, a delta would change both. Leave the embeddings out of target_modules."
            )
        if name not in base:
            raise UserError(f"{adapter.file} changes '{name}', which {base.where} does not have: name the right base")
        expected = base.shape(name)
        added = name in adapter.whole and name in vocabulary and shape[1:] == expected[1:]
        if shape != expected and not added:
            raise UserError(
                f"{adapter.file} changes '{name}' in the shape {shape}; in {base.where} it is {expected}: "
                f"name the base that the adapter was trained on"
            )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {config.get('peft_type')}; only LORA adapters are read as deltas")
    for key in _REFUSED:
        if config.get(key):
            raise UserError(
                f"{path}: '{key}' is set. Such an adapter is more than W + s B A: merge it into its base "
                f"(merge_and_unload, save_pretrained) and take Delta.between of the two."
            )
    if config.get("init_lora_weights", True) not in _PLAIN_INITS:
        raise UserError(
            f"{path}: init_lora_weights={config['init_lora_weights']!r} changed the base before training. Save the "
            f"adapter as plain LoRA (path_initial_model_for_weight_conversion in PEFT's save_pretrained)."
        )
    return config


def _sort_names(names: Iterable[str], file: Path) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """(base tensor -> {"A": name in file, "B": name in file}, base tensor -> name in file of a whole tensor)."""
    factors: dict[str, dict[str, str]] = {}
    whole = {}
    for raw in names:
        if not raw.startswith(_PREFIX):
            raise UserError(f"{file}: the tensor '{raw}' does not begin with '{_PREFIX}': save it again with PEFT")
        name = raw.removeprefix(_PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        ending = next((ending for ending in _FACTORS if name.endswith(ending)), None)
        if ending is not None:
            factors.setdefault(f"{name.removesuffix(ending)}.weight", {})[_FACTORS[ending]] = raw
        elif any(part.startswith("lora_") for part in name.split(".")):
            raise UserError(f"{file}: the tensor '{raw}' is no part of a plain LoRA adapter")
        else:
            whole[name] = raw
    return factors, whole


def _pair(
    name: str,
    parts: Mapping[str, str],
    config: Mapping[str, Any],
    headers: Mapping[str, Spec],
    transposed: bool,
    file: Path,
) -> _Pair:
    if set(parts) != {"A", "B"}:
        raise UserError(f"{file}: '{name}' has only one of the factors A and B: the adapter is incomplete")
    a, b = headers[parts["A"]][0], headers[parts["B"]][0]
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise UserError(f"{file}: the factors of '{name}' are {a} and {b}, expected (r, in) and (out, r)")
    rank = a[0]
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    key = pattern_key(patterns, name.removesuffix(".weight"), f"{file.parent}, adapter_config.json, alpha_pattern")
    alpha = float(patterns.get(key, config.get("lora_alpha", 8)))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return _Pair(parts["A"], parts["B"], scale, transposed)
