"""Export a skillpack as a PEFT adapter: ``adapter_config.json`` + ``adapter_model.safetensors``.

PEFT, vLLM and LoRAX load such adapters.

* A low-rank entry is W + L R with L = diag(A_scale) A and R = diag(B_scale) B diag(1 / smooth). So lora_B = L and
  lora_A = R, exact in float32 except for the rounding of one product each.
* PEFT scales by alpha / r, which is 1 here.
* vLLM reads one ``r`` and one ``lora_alpha`` for all layers (its ``PEFTHelper`` has no ``rank_pattern``). So all
  factors get one rank, and smaller ones are padded with zeros.
* Changes that LoRA cannot express go where PEFT loads them from: norms as ``modules_to_save``, biases and embeddings
  under their own names, which PEFT copies into the base. vLLM refuses such adapters; ``lora_only`` leaves these
  tensors out.
* vLLM allows only ranks up to :data:`VLLM_RANKS`' last. With ``max_rank``, a change of a higher rank becomes the
  nearest one of that rank, and so does a matrix that the pack does not hold in factors.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from skillweave.artefact import atomic_folder
from skillweave.base.checkpoint import Checkpoint
from skillweave.base.fingerprint import fingerprint
from skillweave.base.open import resolve
from skillweave.base.safetensors_io import Spec, write_stream
from skillweave.delta import Delta
from skillweave.delta.adapter_config import CONFIG_FILE, WEIGHTS_FILE
from skillweave.delta.adapter_names import PREFIX
from skillweave.delta.carry import write_carried
from skillweave.errors import UserError
from skillweave.pack.decode import mixed_factors
from skillweave.pack.left_out import MOST_LEFT_OUT, named_shares
from skillweave.pack.nearest_rank import nearest_factors, nearest_product
from skillweave.pack.schema import ROWS, FactorsEntry, LowRankEntry, MixedEntry
from skillweave.pack.skillpack import Skillpack
from skillweave.progress import bar

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for ``--max-lora-rank``."""
_IN_FACTORS = LowRankEntry | FactorsEntry | MixedEntry
"""The entries that a pack holds as two factors."""
_NOTHING = 1e-9
"""A smaller share of the change is a rounding error."""
_ENDINGS = {False: ("lora_B.weight", "lora_A.weight"), True: ("lora_embedding_B", "lora_embedding_A")}
"""How PEFT names the factors of a layer, and of an embedding (True)."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    folder: Path
    rank: int
    modules: int
    """the number of LoRA layers"""
    saved: list[str]
    """the tensors beside the factors, by their names in the base"""
    left_out: dict[str, float]
    """the share of the change in each missing tensor"""
    rounding: float
    """the relative error of the factors in the dtype that was written"""
    rows: int | None
    """the number of tokens that the base must be resized to before PEFT can load the adapter; None: no resize"""
    cut: dict[str, float]
    """the share of the change that each matrix lost because its rank was above the allowed one"""


def export_lora(
    pack: Skillpack,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    lora_only: bool = False,
    keep_ranks: bool = False,
    max_rank: int | None = None,
    allow_left_out: bool = False,
) -> Exported:
    """Write ``pack`` as a PEFT adapter, replacing the whole folder ``out`` atomically.

    * ``base`` is the place of the pack's base, if it is not the place that the pack names.
    * ``dtype`` is that of the written tensors.
    * ``lora_only`` leaves out the tensors that vLLM does not load.
    * ``keep_ranks`` keeps a rank for each layer (``rank_pattern``), which vLLM does not read.
    * ``max_rank`` is the highest rank. Matrices that are not in factors then become factors too.
    * The tokenizer and the generation config that the pack carries are written too.

    Raises :class:`UserError` for another base, for a pack without LoRA layers, and, unless ``allow_left_out``, if more
    than 5% of the change would be left out or lost to ``max_rank``.
    """
    place = resolve(base or pack.card.base.ref)
    checkpoint = Checkpoint(place)
    pack.check_base(fingerprint(checkpoint), checkpoint.config)
    adapter = _Adapter(pack, checkpoint, lora_only, max_rank)
    if not adapter.modules:
        raise UserError(
            f"the pack '{pack.card.name}' has no matrix in low-rank factors on a layer that LoRA knows: there is no "
            f"adapter to write. `skillweave unzip` writes the whole model."
        )
    left_out, cut, rounding = adapter.measure(dtype)
    if sum(left_out.values()) + sum(cut.values()) > MOST_LEFT_OUT and not allow_left_out:
        raise UserError(_too_much_left_out(pack.card.name, left_out, cut, lora_only and max_rank is None))
    ranks = {module: adapter.factors(module)[0].shape[1] for module in adapter.modules}
    rank = max(set(ranks.values()), key=list(ranks.values()).count) if keep_ranks else max(ranks.values())
    specs, read = adapter.tensors(dtype, None if keep_ranks else rank)
    out = Path(out)
    with atomic_folder(out) as temporary, bar(f"writing {out.name}", len(specs)) as advance:

        def read_next(name: str) -> torch.Tensor:
            advance()
            return read(name)

        write_stream(temporary / WEIGHTS_FILE, specs, read_next)
        config = adapter.config(rank, ranks if keep_ranks else {})
        (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_carried(adapter.delta.carried, place, temporary)
    rows = adapter.tuned.token_rows if adapter.saved else None
    return Exported(out, rank, len(adapter.modules), sorted(adapter.saved), left_out, rounding, rows, cut)


class _Adapter:
    """Decides what becomes of each tensor that a pack changes, and reads what is written.

    ``modules`` are the LoRA layers, ``saved`` the tensors that are written whole, ``left_out`` all others.
    """

    def __init__(self, pack: Skillpack, base: Checkpoint, lora_only: bool, max_rank: int | None) -> None:
        self.pack, self.base, self._max_rank = pack, base, max_rank
        self._near: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._lost: dict[str, float] = {}
        self.delta: Delta = pack.unzip()
        self.tuned = self.delta.on(base, torch.float32)
        self._layers: dict[str, nn.Module] = dict(base.skeleton.named_modules(remove_duplicate=False))
        self.modules = [name.removesuffix(".weight") for name in self.delta.names() if self._is_lora(name)]
        rest = [name for name in self.delta.names() if name.removesuffix(".weight") not in self.modules]
        self.saved = [] if lora_only else [name for name in rest if self._is_saved(name)]
        self.left_out = [name for name in rest if name not in self.saved]
        self.norms = sorted({_module(name) for name in self.saved if self._is_norm(_module(name))})

    def _is_lora(self, name: str) -> bool:
        """Return whether an entry is a matrix in two factors, or can become one, on a layer that PEFT supports.

        A tied tensor is not: PEFT would change only one end of the tie, or (``ensure_weight_tying``) merge the change
        twice.
        """
        entry = self.pack.card.entries.get(name)
        if (
            entry is None
            or not (self._max_rank or isinstance(entry, _IN_FACTORS))
            or name + ROWS in self.pack.card.entries
            or len(entry.shape) != 2
            or tuple(entry.shape) != self.base.shape(name)
            or name in self.base.tied.values()
        ):
            return False
        layer = self._layers.get(name.removesuffix(".weight"))
        # A layer that the model class does not have is an expert: files, vLLM and PEFT know it by this name.
        return layer is None or isinstance(layer, nn.Linear | nn.Embedding | Conv1D)

    def _is_saved(self, name: str) -> bool:
        is_vector = len(self.delta.shape(name)) == 1
        return name in self.base.vocabulary_names() or self._is_norm(_module(name)) or (is_vector and ".bias" in name)

    def _is_norm(self, module: str) -> bool:
        parts = self._parts(module)
        return bool(parts) and all(len(self.base.shape(name)) == 1 for name in parts)

    def _parts(self, module: str) -> list[str]:
        return [name for name in self.base.names() if _module(name) == module]

    # -- numbers -------------------------------------------------------------------------------------------------

    def factors(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return lora_B (out, r) and lora_A (r, in) in float32, oriented as PEFT multiplies them."""
        if module in self._near:
            return self._near[module]
        name = f"{module}.weight"
        entry = self.pack.card.entries[name]
        # PEFT stores the factors of Conv1D and of embeddings for the transposed weight.
        transposed = isinstance(self._layers.get(module), Conv1D | nn.Embedding)
        if isinstance(entry, _IN_FACTORS):
            left, right = self._factors(name, entry)
            lost = 0.0
            if self._max_rank is not None:
                left, right, lost = nearest_product(left, right, self._max_rank)
            transposed = transposed != entry.transposed
        else:
            assert self._max_rank is not None
            left, right, lost = nearest_factors(self._change(name), self._max_rank)
        found = (right.T, left.T) if transposed else (left, right)
        if lost or not isinstance(entry, _IN_FACTORS):  # a decomposition is made once
            self._near[module], self._lost[name] = found, lost
        return found

    def _factors(self, name: str, entry: LowRankEntry | FactorsEntry | MixedEntry) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(entry, LowRankEntry):
            return self.pack.lowrank_parts(name).factors()
        if isinstance(entry, MixedEntry):
            return mixed_factors(self.pack.tensors, name, entry)
        return self.pack.tensors[f"{name}.A"].float(), self.pack.tensors[f"{name}.B"].float()

    def measure(self, dtype: torch.dtype) -> tuple[dict[str, float], dict[str, float], float]:
        """Return the share of the change in each tensor left out, the share that each matrix loses to the highest rank,
        and the relative error of the factors in ``dtype``.

        All are measured in squared norms, without making a product of factors.
        """
        factors_energy = lost = 0.0
        for module in self.modules:
            left, right = self.factors(module)
            factors_energy += _energy(left, right)
            near_left, near_right = left.to(dtype).float(), right.to(dtype).float()
            # near_left near_right - left right, as one product.
            lost += _energy(torch.cat([near_left, left], dim=1), torch.cat([near_right, -right]))
        others = {name: float(self._change(name).double().square().sum()) for name in (*self.saved, *self.left_out)}
        # What a nearest product loses is orthogonal to it, so the squares add up.
        total = factors_energy + sum(self._lost.values()) + sum(others.values())
        shares = {name: others[name] / total for name in self.left_out if total}
        cut = {name: energy / total for name, energy in self._lost.items() if energy > _NOTHING * total}
        return shares, cut, (lost / factors_energy) ** 0.5 if factors_energy else 0.0

    def _change(self, name: str) -> torch.Tensor:
        """Return what the pack changes in a tensor, in float32; added rows count in full."""
        change = self.delta.tensor(name).float()
        if self.delta.whole(name):
            old = self.base.tensor(name).float()
            rows = min(len(old), len(change))
            change = torch.cat([change[:rows] - old[:rows], change[rows:]])
        return change

    # -- files ---------------------------------------------------------------------------------------------------

    def tensors(self, dtype: torch.dtype, rank: int | None) -> tuple[dict[str, Spec], Callable[[str], torch.Tensor]]:
        """Return the specs of the adapter's file, and a function that reads each tensor of it.

        Factors are padded to ``rank``; None keeps the rank of each.
        """
        specs: dict[str, Spec] = {}
        readers: dict[str, Callable[[], torch.Tensor]] = {}
        for module in self.modules:
            embedding = isinstance(self._layers.get(module), nn.Embedding)
            left_key, right_key = (f"{PREFIX}{module}.{ending}" for ending in _ENDINGS[embedding])
            left, right = self.factors(module)
            own = rank or left.shape[1]
            specs[left_key] = (left.shape[0], own), dtype
            specs[right_key] = (own, right.shape[1]), dtype
            readers[left_key] = functools.partial(self._padded_factor, module, 0, own)
            readers[right_key] = functools.partial(self._padded_factor, module, 1, own)
        for name in {*self.saved, *(part for module in self.norms for part in self._parts(module))}:
            module, _, leaf = name.rpartition(".")
            key = f"{PREFIX}{module}.base_layer.{leaf}" if module in self.modules else f"{PREFIX}{name}"
            specs[key] = self.tuned.shape(name), dtype
            readers[key] = functools.partial(self.tuned.tensor, name)
        return specs, lambda key: readers[key]().to(dtype)

    def _padded_factor(self, module: str, side: int, rank: int) -> torch.Tensor:
        """Return one factor of a layer (side 0: lora_B, 1: lora_A) with zeros up to ``rank``."""
        factor = self.factors(module)[side]
        missing = rank - factor.shape[1 - side]
        return nn.functional.pad(factor, (0, missing) if side == 0 else (0, 0, 0, missing))

    def config(self, rank: int, ranks: Mapping[str, int]) -> dict[str, Any]:
        """Return the values of ``adapter_config.json``; ``ranks`` gives the rank of each module, if they may differ.

        The alpha of a module equals its rank.
        """
        pattern = {re.escape(module): own for module, own in ranks.items() if own != rank}
        biases = any(name.endswith(".bias") and _module(name) not in self.norms for name in self.saved)
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=self._targets(),
            rank_pattern=pattern,
            alpha_pattern=dict(pattern),
            modules_to_save=self.norms or None,
            bias="all" if biases else "none",
            fan_in_fan_out=any(isinstance(self._layers.get(module), Conv1D) for module in self.modules),
            base_model_name_or_path=self.pack.card.base.ref,
            task_type="CAUSAL_LM",
            inference_mode=True,
        )
        values = config.to_dict()
        return {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}

    def _targets(self) -> list[str]:
        """Return short names (``q_proj``) if they match exactly the modules of the pack, else the full names."""
        short = {module.rpartition(".")[2] for module in self.modules}
        matched = {
            name for name, layer in self._layers.items() if name.rpartition(".")[2] in short and _has_weight(layer)
        }
        return sorted(short) if matched == set(self.modules) else sorted(self.modules)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _has_weight(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "weight", None), torch.Tensor)


def _energy(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return ||left right||^2 as the sum over (left^T left) * (right right^T), without making the product."""
    left, right = left.double(), right.double()
    return max(0.0, float(((left.T @ left) * (right @ right.T)).sum()))


def _too_much_left_out(name: str, left_out: Mapping[str, float], cut: Mapping[str, float], holds_more: bool) -> str:
    missing = {**left_out, **cut}
    why = f", {sum(cut.values()):.1%} of it because ranks are too high" if cut else ""
    advice = "leave out --lora-only, or say" if holds_more else "write the whole model with `skillweave unzip`, or say"
    return (
        f"a LoRA adapter of the pack '{name}' would leave out {sum(missing.values()):.1%} of the change (of its "
        f"squared norm{why}): {named_shares(missing)}. To keep it, {advice} --allow-left-out to write the adapter "
        f"without it."
    )
