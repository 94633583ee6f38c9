"""A skillpack as a PEFT adapter: ``adapter_config.json`` + ``adapter_model.safetensors``, for PEFT, vLLM and LoRAX.

A low-rank entry is W + L R with L = diag(A_scale) A and R = diag(B_scale) B diag(1 / smooth), so lora_B = L and
lora_A = R, exact in float32 but for the rounding of one product each. PEFT scales by alpha / r, which is 1 here. vLLM
reads one ``r`` and one ``lora_alpha`` for all layers (its ``PEFTHelper`` has no ``rank_pattern``), so all factors get
one rank: the smaller ones are filled up with zeros.

What LoRA cannot hold goes where PEFT loads it from: changed norms as ``modules_to_save``, biases and embeddings under
their own names, which PEFT copies into the base. vLLM refuses such adapters; ``lora_only`` leaves these tensors out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
from skillweave.pack.left_out import MOST_LEFT_OUT, named_shares
from skillweave.pack.schema import ROWS, FactorsEntry, LowRankEntry
from skillweave.pack.skillpack import Skillpack
from skillweave.progress import bar


@dataclass(frozen=True)
class Exported:
    """What an export wrote. ``saved`` are the tensors beside the factors, as PEFT stores them; ``left_out`` gives each
    missing tensor's share of the change; ``rounding`` is the relative error of the factors in the written dtype;
    ``rows`` is the number of tokens where the base must be resized before PEFT can load the adapter."""

    folder: Path
    rank: int
    modules: int
    saved: list[str]
    left_out: dict[str, float]
    rounding: float
    rows: int | None


def export_lora(
    pack: Skillpack,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    lora_only: bool = False,
    keep_ranks: bool = False,
    allow_left_out: bool = False,
) -> Exported:
    """Write ``pack`` as a PEFT adapter into the folder ``out`` (replaced whole, atomically).

    ``base`` is where the pack's base lies, if not at the place that the pack names. ``lora_only`` leaves out what vLLM
    does not load; ``keep_ranks`` keeps the rank of each layer (``rank_pattern``), which vLLM does not read. The
    tokenizer and the generation config that the pack carries are written along. Raises :class:`UserError` for another
    base, and where more than 5% of the change would be left out unless ``allow_left_out``.
    """
    place = resolve(base or pack.card.base.ref)
    pack.check_base(fingerprint(place))
    plan = _Plan(pack, Checkpoint(place), lora_only)
    if not plan.modules:
        raise UserError(
            f"the pack '{pack.card.name}' has no matrix in low-rank factors on a layer that LoRA knows: there is no "
            f"adapter to write. `skillweave unzip` writes the whole model."
        )
    left_out, rounding = plan.measure(dtype)
    if sum(left_out.values()) > MOST_LEFT_OUT and not allow_left_out:
        raise UserError(_too_much(pack.card.name, left_out, lora_only))
    ranks = {module: plan.factors(module)[0].shape[1] for module in plan.modules}
    rank = max(set(ranks.values()), key=list(ranks.values()).count) if keep_ranks else max(ranks.values())
    specs, read = plan.tensors(dtype, None if keep_ranks else rank)
    out = Path(out)
    with atomic_folder(out) as temporary, bar(f"writing {out.name}", len(specs)) as advance:

        def read_next(name: str) -> torch.Tensor:
            advance()
            return read(name)

        write_stream(temporary / WEIGHTS_FILE, specs, read_next)
        config = plan.config(rank, ranks if keep_ranks else {})
        (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_carried(plan.delta.carried, place, temporary)
    rows = plan.tuned.token_rows if plan.saved else None
    return Exported(out, rank, len(plan.modules), sorted(plan.saved), left_out, rounding, rows)


class _Plan:
    """Where each entry of a pack goes: ``modules`` (LoRA layers), ``saved`` (tensors as they are), ``left_out``."""

    def __init__(self, pack: Skillpack, base: Checkpoint, lora_only: bool) -> None:
        self.pack, self.base = pack, base
        self.delta: Delta = pack.unzip()
        self.tuned = self.delta.on(base, torch.float32)
        self._layers: dict[str, nn.Module] = dict(base.skeleton.named_modules(remove_duplicate=False))
        self.modules = [name.removesuffix(".weight") for name in self.delta.names() if self._is_lora(name)]
        rest = [name for name in self.delta.names() if name.removesuffix(".weight") not in self.modules]
        self.saved = [] if lora_only else [name for name in rest if self._is_saved(name)]
        self.left_out = [name for name in rest if name not in self.saved]
        self.norms = sorted({_module(name) for name in self.saved if self._is_norm(_module(name))})

    def _is_lora(self, name: str) -> bool:
        """Whether an entry is a matrix in two factors on a layer that PEFT gives LoRA to.

        An end of a tie is none: PEFT would change one end, or (``ensure_weight_tying``) merge the change twice.
        """
        from transformers.pytorch_utils import Conv1D

        entry = self.pack.card.entries.get(name)
        if (
            not isinstance(entry, LowRankEntry | FactorsEntry)
            or name + ROWS in self.pack.card.entries
            or len(entry.shape) != 2
            or name in self.base.tied.values()
        ):
            return False
        layer = self._layers.get(name.removesuffix(".weight"))
        # A layer that the class does not have is an expert: its files, vLLM and PEFT know it by this name.
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
        """(lora_B (out, r), lora_A (r, in)) in float32, as PEFT lays them against the layer's weight."""
        name = f"{module}.weight"
        entry = self.pack.card.entries[name]
        if isinstance(entry, LowRankEntry):
            left, right = self.pack.lowrank_parts(name).factors()
        else:
            left, right = (self.pack.tensors[f"{name}.{part}"].float() for part in "AB")
        # PEFT writes the factors of Conv1D and of embeddings for the weight turned round.
        turned = self._is_turned(module) != getattr(entry, "transposed", False)
        return (right.T, left.T) if turned else (left, right)

    def _is_turned(self, module: str) -> bool:
        from transformers.pytorch_utils import Conv1D

        return isinstance(self._layers.get(module), Conv1D | nn.Embedding)

    def measure(self, dtype: torch.dtype) -> tuple[dict[str, float], float]:
        """(share of the change of each tensor left out, relative error of the factors in ``dtype``)."""
        factors_energy = lost = 0.0
        for module in self.modules:
            left, right = self.factors(module)
            factors_energy += _energy(left, right)
            close = left.to(dtype).float(), right.to(dtype).float()
            lost += _energy(torch.cat([close[0], left], dim=1), torch.cat([close[1], -right]))
        others = {name: self._change_energy(name) for name in (*self.saved, *self.left_out)}
        total = factors_energy + sum(others.values())
        shares = {name: others[name] / total for name in self.left_out if total}
        return shares, (lost / factors_energy) ** 0.5 if factors_energy else 0.0

    def _change_energy(self, name: str) -> float:
        change = self.delta.tensor(name).float()
        if self.delta.whole(name):
            old = self.base.tensor(name).float()
            rows = min(len(old), len(change))
            change = torch.cat([change[:rows] - old[:rows], change[rows:]])
        return float(change.double().square().sum())

    # -- files ---------------------------------------------------------------------------------------------------

    def tensors(self, dtype: torch.dtype, rank: int | None) -> tuple[dict[str, Spec], Callable[[str], torch.Tensor]]:
        """(specs of the adapter's file, a function that reads each); factors get ``rank``, or keep their own."""
        readers: dict[str, Callable[[], torch.Tensor]] = {}
        specs: dict[str, Spec] = {}
        for module in self.modules:
            embedding = isinstance(self._layers.get(module), nn.Embedding)
            endings = ("lora_embedding_B", "lora_embedding_A") if embedding else ("lora_B.weight", "lora_A.weight")
            shapes = [tuple(part.shape) for part in self.factors(module)]
            for at, (ending, shape) in enumerate(zip(endings, shapes, strict=True)):
                name = f"{PREFIX}{module}.{ending}"
                wide = rank or shape[1 - at]
                specs[name] = ((shape[0], wide) if at == 0 else (wide, shape[1])), dtype
                readers[name] = lambda module=module, at=at, shape=specs[name][0]: _padded(  # type: ignore[misc]
                    self.factors(module)[at], shape
                ).to(dtype)
        for name in {*self.saved, *(part for module in self.norms for part in self._parts(module))}:
            module, _, leaf = name.rpartition(".")
            raw = f"{PREFIX}{module}.base_layer.{leaf}" if module in self.modules else f"{PREFIX}{name}"
            specs[raw] = self.tuned.shape(name), dtype
            readers[raw] = lambda name=name: self.tuned.tensor(name).to(dtype)  # type: ignore[misc]
        return specs, lambda name: readers[name]()

    def config(self, rank: int, ranks: Mapping[str, int]) -> dict[str, Any]:
        """``adapter_config.json``; ``ranks`` of the modules where they differ, each its own alpha as well."""
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

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
        """Short names (``q_proj``) where they stand for exactly the modules of the pack, else the whole names."""
        short = {module.rpartition(".")[2] for module in self.modules}
        meant = {
            name for name, layer in self._layers.items() if name.rpartition(".")[2] in short and _has_weight(layer)
        }
        return sorted(short) if meant == set(self.modules) else sorted(self.modules)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _has_weight(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "weight", None), torch.Tensor)


def _energy(left: torch.Tensor, right: torch.Tensor) -> float:
    """||left right||^2 without making the product: the sum over (left^T left) * (right right^T)."""
    left, right = left.double(), right.double()
    return max(0.0, float(((left.T @ left) * (right @ right.T)).sum()))


def _padded(factor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The factor with zeros behind it, up to ``shape``."""
    result = torch.zeros(shape)
    result[: factor.shape[0], : factor.shape[1]] = factor
    return result


def _too_much(name: str, left_out: Mapping[str, float], lora_only: bool) -> str:
    advice = "leave out --lora-only, or say" if lora_only else "write the whole model with `skillweave unzip`, or say"
    return (
        f"a LoRA adapter of the pack '{name}' would leave out {sum(left_out.values()):.1%} of the change (of its "
        f"squared norm): {named_shares(left_out)}. To keep it, {advice} --allow-left-out to write the adapter without "
        f"it."
    )
