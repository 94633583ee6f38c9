"""Read any adapter that PEFT can merge as a delta: PEFT builds its layers on the base and merges them, one at a time.

PEFT is given a model, a config and tensors. It opens no file, so it reads no pickle and downloads nothing. Names come
from the tensors in the adapter file, and patterns of the config are resolved beforehand, so PEFT runs no regular
expression of the adapter.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.peft_types import PeftType
from peft.utils.save_and_load import set_peft_model_state_dict
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from skillweave.base.checkpoint import Checkpoint
from skillweave.base.load import load_model
from skillweave.base.safetensors_io import Spec, TensorFiles, read_headers
from skillweave.delta.adapter_config import CONFIG_FILE, WEIGHTS_FILE
from skillweave.delta.adapter_names import PREFIX, Names, matches, value_for
from skillweave.delta.adapter_whole import settle_whole, without_copies
from skillweave.delta.arithmetic import changed, difference, finite
from skillweave.delta.lora import one_end, plain_name
from skillweave.delta.source import TensorSource
from skillweave.errors import UserError
from skillweave.progress import bar

_ADAPTER = "default"
# Options that only matter while an adapter is created. What they name is never opened.
_INIT_ONLY = ("auto_mapping", "base_model_name_or_path", "revision", "eva_config", "corda_config", "lora_ga_config")
_PATTERNS = ("rank_pattern", "alpha_pattern")
_PLAIN = re.compile(r"[\w.\-]+")


class Merged(TensorSource):
    """An adapter on a base: indexing merges one layer and gives the change of a base tensor in float32.

    For names in ``whole``, indexing gives the tuned tensor itself. The constructor merges every layer once, to find out
    which tensors change and whether all numbers are finite. Memory: the adapter, the base as its files hold it, and one
    layer in float32.

    Raises :class:`UserError` if PEFT cannot merge the adapter, if one of its tensors has no place in the base, and if
    it changes only one of two tied tensors.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], base: Checkpoint) -> None:
        self.file = folder / WEIGHTS_FILE
        self.where = str(folder)
        self._base = base
        self._latest: tuple[str, dict[str, torch.Tensor]] | None = None
        names = Names.of(base)
        headers = read_headers(self.file)
        self._read = TensorFiles(dict.fromkeys(headers, self.file)).read
        headers = without_copies(headers, self._read)
        kind = config["peft_type"]
        names_of = {raw: names.tensor(plain_name(raw)) for raw in headers}
        whole = {name: raw for raw, name in names_of.items() if name in base or name in base.tied}
        self._files = settle_whole(whole, self._read, config, base, self.file)
        rest = [raw for raw in headers if raw not in set(whole.values())]
        tensors = _without_repeats({_peft_name(raw, names, kind): self._read(raw) for raw in rest}, base)
        model = _filled(base, {name: self._read(raw) for name, raw in self._files.items()})
        self._peft = _wrapped(model, _resolved(config, tensors, names, folder), tensors, self.file)
        self._modules = _wrappers(self._peft.base_model.model)
        self.specs, self.whole = self._find_changes(kind)

    def __getitem__(self, name: str) -> torch.Tensor:
        module = self._layer_of.get(name)
        if module is None:
            return self._read(self._files[name])
        tuned = self._merge(module)[name]
        if name in self.whole:
            return tuned
        return difference(self._base.tensor(name).cpu(), tuned, torch.float32)

    def _find_changes(self, kind: str) -> tuple[dict[str, Spec], frozenset[str]]:
        """(specs of the changed tensors, names of those that are whole). Merges every layer once."""
        self._layer_of: dict[str, str] = {}
        specs: dict[str, Spec] = {}
        whole = set()
        far_ends: dict[str, torch.Tensor] = {}
        with bar(f"merging {kind}", len(self._modules)) as advance:
            for module in self._modules:
                for name, tuned in self._merge(module).items():
                    if name in self._base.tied:
                        far_ends[name] = tuned
                    elif name not in self._base:
                        raise UserError(
                            f"{self.file} changes '{name}', which {self._base.where} does not have under that name"
                        )
                    elif self._differs(name, tuned):
                        self._layer_of[name] = module
                        specs[name] = (tuple(tuned.shape), torch.float32)
                        if tuple(tuned.shape) != self._base.shape(name):
                            whole.add(name)
                    if not finite(tuned):
                        raise UserError(f"{self.file}: the adapter makes '{name}' NaN or infinite: it is damaged")
                advance(note=f"{len(specs)} tensors changed")
        self._check_ties(specs, far_ends)
        for name, raw in self._files.items():
            if name not in self._layer_of:
                tensor = self._read(raw)
                specs[name] = (tuple(tensor.shape), tensor.dtype)
                whole.add(name)
        return specs, frozenset(whole)

    def _differs(self, name: str, tuned: torch.Tensor) -> bool:
        old = self._base.tensor(name).cpu()
        return old.shape != tuned.shape or changed(old, tuned)

    def _check_ties(self, specs: Mapping[str, Spec], far_ends: Mapping[str, torch.Tensor]) -> None:
        for far, near in self._base.tied.items():
            if far in far_ends:
                near_end = self._merge(self._layer_of[near])[near] if near in specs else None
                if near_end is None:
                    near_end = self._read(self._files[near]) if near in self._files else self._base.tensor(near)
                alike = near_end.shape == far_ends[far].shape
                if alike and torch.allclose(near_end.float().cpu(), far_ends[far], rtol=1e-5, atol=1e-6):
                    continue
                raise one_end(self.file, far, near, self._base)
            if near in specs:
                raise one_end(self.file, near, far, self._base)

    def _merge(self, module: str) -> dict[str, torch.Tensor]:
        """The tensors of one layer, by the base's names, after PEFT merged a float32 copy of the layer.

        The last layer is cached: the experts of a mixture are many tensors of the files and one of the layer.
        """
        if self._latest is None or self._latest[0] != module:
            self._latest = None
            self._latest = (module, self._merge_copy(module))
        return self._latest[1]

    @torch.no_grad()
    def _merge_copy(self, module: str) -> dict[str, torch.Tensor]:
        layer: Any = copy.deepcopy(self._modules[module]).float()
        with _peft_errors(self.file):
            if hasattr(layer, "unload_and_optionally_merge_module"):
                merged = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            else:
                layer.merge(safe_merge=False, adapter_names=None)
                merged = layer.get_base_layer()
        tensors = {f"{module}.{leaf}": tensor.detach().cpu() for leaf, tensor in merged.state_dict().items()}
        named = {name: tensor for name, tensor in tensors.items() if name in self._base or name in self._base.tied}
        fused = {name: tensor for name, tensor in tensors.items() if name not in named}
        return named | (revert_weight_conversion(self._peft.base_model.model, fused) if fused else {})


def _peft_name(raw: str, names: Names, kind: str) -> str:
    """The name that PEFT gives a tensor of the file on this base. A tensor of no module keeps its name."""
    if raw.startswith("base_model.") and not raw.startswith(PREFIX):
        return raw
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(PeftType(kind), "lora_")
    parts = raw.removeprefix(PREFIX).split(".")
    cut = next((at for at, part in enumerate(parts) if _of_adapter(part, prefix)), len(parts))
    return PREFIX + ".".join([names.module(".".join(parts[:cut])), *parts[cut:]])


def _without_repeats(tensors: Mapping[str, torch.Tensor], base: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors without trained tokens that repeat those of a tied tensor.

    PEFT may write them for both of two tied tensors, and has one tensor for the two when it loads them.
    """
    kept = dict(tensors)
    for far, near in base.tied.items():
        repeat, first = (
            f"{PREFIX}{end.removesuffix('.weight')}.token_adapter.trainable_tokens_delta" for end in (far, near)
        )
        if repeat in kept and first in kept and torch.equal(kept[repeat], kept[first]):
            del kept[repeat]
    return kept


def _of_adapter(part: str, prefix: str) -> bool:
    return part.startswith((prefix, "token_adapter", "trainable_tokens_", "base_layer"))


def _filled(base: Checkpoint, whole: Mapping[str, torch.Tensor]) -> Any:
    """A model of the base's class with the base's tensors as stored, where the tensors in ``whole`` replace them."""
    model = copy.deepcopy(base.skeleton)
    in_memory = not any(parameter.is_meta for parameter in model.parameters())
    missing = set(model.state_dict()) - set(base.names()) - set(base.tied)
    tensors: dict[str, torch.Tensor] = dict(whole)
    if not in_memory and missing:
        # transformers fuses tensors of some architectures while it loads them.
        model = load_model(base)
    elif not in_memory:
        tensors = {name: base.tensor(name) for name in base.names()} | tensors
    near_of = {far: near for far, near in base.tied.items() if near in tensors}
    holders: dict[str, nn.Parameter] = {}
    for name in [*tensors, *near_of]:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf in module._buffers:
            module._buffers[leaf] = tensors[name]
        elif name in near_of:
            module._parameters[leaf] = holders[near_of[name]]
        else:
            holders[name] = module._parameters[leaf] = nn.Parameter(tensors[name], requires_grad=False)
    return model.eval()


def _resolved(config: Mapping[str, Any], tensors: Mapping[str, Any], names: Names, folder: Path) -> dict[str, Any]:
    """The config without regular expressions: modules are listed by name, each with its own rank and alpha."""
    where = str(folder / CONFIG_FILE)
    kind = PeftType(config["peft_type"])
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(kind, "lora_")
    targets = sorted({module for raw in tensors if (module := _module_of(raw, prefix))})
    resolved = {key: value for key, value in config.items() if key not in _INIT_ONLY}
    resolved |= {"modules_to_save": None, "megatron_config": None, "inference_mode": True}
    if any(not _is_plain(config.get(key)) for key in ("target_modules", "exclude_modules", "layers_pattern")):
        resolved |= dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"), None)
        resolved["target_modules"] = targets or _matching(config["target_modules"], names, where)
    if not _is_plain(config.get("target_parameters")):
        raise UserError(f"{where}: 'target_parameters' holds more than names: save the adapter with a recent PEFT")
    forward = config.get("feedforward_modules")
    if not _is_plain(forward):
        resolved["feedforward_modules"] = [name for name in targets if matches(str(forward), name, where)]
    # A pattern may also name a parameter of a module, such as the stacked experts of a layer.
    inside = [f".{name}" for name in config.get("target_parameters") or ()]
    named = targets + sorted(name for name in names.tensors if f".{name}".endswith(tuple(inside)))
    for key in _PATTERNS:
        patterns = config.get(key)
        if patterns and all(isinstance(value, int | float) for value in patterns.values()):
            values = {name: value_for(name, patterns, None, f"{where}: {key}") for name in named}
            resolved[key] = {re.escape(name): value for name, value in values.items() if value is not None}
    if config["peft_type"] == "LORA":
        resolved |= _ranks(resolved, tensors, targets)
    return resolved


def _ranks(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], targets: list[str]) -> dict[str, Any]:
    """``r`` and ``rank_pattern`` according to the factors in the file, which decide."""
    ranks = {
        name: tensors[key].shape[0]
        for name in targets
        if (key := f"{PREFIX}{name}.lora_A.weight") in tensors or (key := f"{PREFIX}{name}.lora_embedding_A") in tensors
    }
    if config.get("target_parameters") or not ranks:
        return {}
    usual = max(set(ranks.values()), key=list(ranks.values()).count)
    return {"r": usual, "rank_pattern": {re.escape(name): rank for name, rank in ranks.items() if rank != usual}}


def _module_of(raw: str, prefix: str) -> str | None:
    parts = raw.removeprefix(PREFIX).split(".")
    cut = next((at for at, part in enumerate(parts) if part.startswith(prefix)), None)
    return ".".join(parts[:cut]).removesuffix(".base_layer") if cut else None


def _is_plain(value: Any) -> bool:
    """Whether an option that may be a pattern holds only plain names (or PEFT's word for all layers)."""
    if value is None or value == "all-linear":
        return True
    return isinstance(value, list) and all(isinstance(name, str) and _PLAIN.fullmatch(name) for name in value)


def _matching(pattern: Any, names: Names, where: str) -> list[str]:
    if not isinstance(pattern, str):
        raise UserError(f"{where}: 'target_modules' is neither a list of names nor a pattern")
    return sorted(name for name in names.modules if matches(pattern, name, f"{where}: target_modules"))


def _wrapped(model: Any, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], file: Path) -> Any:
    """The model with the adapter's layers, filled. Every tensor of the file is used, and none is missing."""
    kind = PeftType(config["peft_type"])
    known = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
    # Some kinds draw random numbers while they are built, which must not change the caller's random state.
    with _peft_errors(file), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        settings = PEFT_TYPE_TO_CONFIG_MAPPING[kind](**{key: value for key, value in config.items() if key in known})
        peft: Any = PeftModel(model, settings, adapter_name=_ADAPTER)
        peft.base_model._check_merge_allowed()
        result: Any = set_peft_model_state_dict(peft, dict(tensors), adapter_name=_ADAPTER)
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(kind, "lora_")
    if result.unexpected_keys:
        raise UserError(
            f"{file}: {len(result.unexpected_keys)} tensors have no place in the base, "
            f"'{result.unexpected_keys[0]}' for example: name the base that the adapter was trained on"
        )
    missing = [key for key in result.missing_keys if prefix in key and _ADAPTER in key and not _shared(key)]
    if missing:
        raise UserError(
            f"{file} does not have '{missing[0]}' ({len(missing)} tensors in all): the adapter is incomplete"
        )
    return peft.eval()


def _shared(key: str) -> bool:
    """Whether a layer's tensor is one that all layers of the adapter share."""
    return any(part in key for part in ("vblora_vector_bank", ".tinylora_v.", ".unilora_theta_d."))


def _wrappers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with which PEFT replaced the base's, by their names; not those inside of others."""
    wrappers: dict[str, nn.Module] = {}
    kinds: Any = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    latest = None
    for name, module in model.named_modules():
        if isinstance(module, kinds) and not (latest and name.startswith(latest)):
            wrappers[name] = module
            latest = f"{name}."
    return wrappers


class _peft_errors:
    """Turns an error of PEFT into a :class:`UserError` that names the file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            message = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(
                f"{self.file}: PEFT cannot merge this adapter into its base ({message}). If it can where the adapter "
                f"was trained, merge it there (merge_and_unload, save_pretrained) and zip the result as --tuned."
            ) from error
