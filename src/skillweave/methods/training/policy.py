"""The model that is being trained, stored as a folder between stages: opened to sample, opened to train, saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import set_seed

from skillweave.artefact import atomic_folder
from skillweave.base import Base, Checkpoint
from skillweave.base.load import load_model
from skillweave.delta import Delta, is_delta
from skillweave.errors import UserError
from skillweave.methods.training.settings import ModelSettings
from skillweave.patterns import TooSlow, bounded_search


@dataclass(frozen=True)
class Policy:
    """A point on the way from the base to the specialist.

    - ``base``: the Hugging Face folder of the base; ``ref`` is the name under which the user opened it.
    - ``device``: where the model is placed.
    - ``trained``: None (the base itself), the folder of a delta, a Hugging Face folder with the whole model in float32
      (``train: full``), or a PEFT adapter (``train: lora``).

    Stages hand each other folders. A resumed run and an unbroken one therefore start each stage from the same bits, and
    two models are never in memory at once.
    """

    base: Path
    ref: str
    device: torch.device
    trained: Path | None = None

    def open_to_sample(self, config: ModelSettings) -> Any:
        """The model in the precision of the training: with ``bf16``, the weights that autocast would compute with."""
        dtype = torch.bfloat16 if config.autocast else torch.float32
        model: Any
        if config.train == "lora" and self.trained is not None:
            model = self._load(self.base, dtype)
            model = PeftModel.from_pretrained(model, str(self.trained), autocast_adapter_dtype=False).to(dtype)
        else:
            model = self._load_merged(dtype)
        return model.to(self.device).eval()

    def open_to_train(self, config: ModelSettings, seed: int) -> Any:
        """A new copy whose trainable parameters are float32 and require gradients; no other parameter does.

        ``seed`` decides the initial values of a new adapter. Raises :class:`UserError` if ``trainable`` or
        ``lora.targets`` names nothing in the base.
        """
        set_seed(seed)
        model: Any
        if config.train == "full":
            model = self._load_merged(torch.float32)
            mark_trainable(model, config.trainable)
        else:
            # The frozen base keeps the precision of its files; PEFT keeps the adapters in float32.
            model = self._load(self.base, None if config.autocast else torch.float32)
            model = self._with_adapter(model, config)
        return model.to(self.device)

    def delta(self, base: Base, train: str) -> Delta:
        """What was trained, as a delta on ``base``. Raises ``ValueError`` if nothing was trained."""
        if self.trained is None:
            raise ValueError("nothing was trained: there is no delta")
        if is_delta(self.trained):
            return Delta.from_pretrained(self.trained)
        return Delta.from_lora(self.trained, base) if train == "lora" else Delta.between(base, self.trained)

    def _load_merged(self, dtype: torch.dtype) -> Any:
        """The model with everything that was trained in its weights."""
        if self.trained is None or not is_delta(self.trained):
            return self._load(self.trained or self.base, dtype)
        # Add in float32 and round once. If the weights were rounded first, most of a small delta would be lost.
        model = self._load(self.base, torch.float32)
        Delta.from_pretrained(self.trained).add_to(model)
        return model.to(dtype)

    def _load(self, folder: Path, dtype: torch.dtype | None) -> Any:
        """The model of a folder, trained or not. Its end tokens for generation are always those of the base."""
        return load_model(folder, dtype, generation=self.base)

    def _with_adapter(self, model: Any, config: ModelSettings) -> Any:
        if self.trained is not None:
            return PeftModel.from_pretrained(model, str(self.trained), is_trainable=True)
        settings = LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            target_modules=config.lora.targets,
            lora_dropout=0.0,
        )
        try:
            model = get_peft_model(model, settings)
        except ValueError as error:
            raise UserError(f"lora.targets {config.lora.targets!r} does not fit the base: {error}") from error
        # The adapter names the base as the user did; the path of its files on this machine helps nobody elsewhere.
        model.peft_config["default"].base_model_name_or_path = self.ref
        return model


def mark_trainable(model: Any, which: str) -> None:
    """Let only the parameters named by ``which`` require gradients: 'all', 'linear' or a regex on their names.

    'linear' means the weights and biases of all linear layers except the output head. Embeddings, norms and head then
    stay frozen, bit for bit. Raises :class:`UserError` if a regex matches no parameter.
    """
    head = model.get_output_embeddings()
    linear = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
        for parameter in module.parameters(recurse=False)
    }
    any_trainable = False
    for name, parameter in model.named_parameters():
        trainable = id(parameter) in linear if which == "linear" else which == "all" or _matches(which, name)
        parameter.requires_grad_(trainable)
        any_trainable = any_trainable or trainable
    if not any_trainable:
        names = ", ".join(name for name, _ in list(model.named_parameters())[:3])
        raise UserError(f"trainable '{which}' names no parameter of the base; its names look like: {names}")


def _matches(pattern: str, name: str) -> bool:
    try:
        return bounded_search(pattern, name) is not None
    except (ValueError, TooSlow) as error:
        raise UserError(f"trainable: {error}") from error


def save_policy(model: Any, state_dict: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the trained model, or the adapter alone, with the tensors ``state_dict``, for the next stage to open.

    The tokenizer and the generation settings are not written, since they stay those of the base. (TRL notes the pad
    token in the generation settings, which is no part of what was learnt.)
    """
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, state_dict=state_dict)
        (temporary / "generation_config.json").unlink(missing_ok=True)
        (temporary / "README.md").unlink(missing_ok=True)


def changes_any_weight(delta: Delta, base: Base) -> bool:
    """Whether the delta changes any tensor of the base by more than float32 can resolve at its largest weight."""
    return any(_changes(delta, base.checkpoint, name) for name in delta.names())


def _changes(delta: Delta, base: Checkpoint, name: str) -> bool:
    if name not in base or base.shape(name) != delta.shape(name):
        return True
    weights, stored = base.tensor(name).float().cpu(), delta.tensor(name).float().cpu()
    change = stored - weights if delta.whole(name) else stored
    if not change.numel():
        return False
    # A weight that is zero takes up any step, however small, so the largest weight of the tensor is the measure.
    largest = float(weights.abs().max()) or 1.0
    return not float(change.abs().max()) <= torch.finfo(torch.float32).eps * largest  # a NaN counts as a change
