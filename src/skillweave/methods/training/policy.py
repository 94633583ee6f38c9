"""The model that is being trained, as a folder between stages: opened to sample, opened to train, saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import set_seed

from skillweave.artefact import atomic_folder
from skillweave.base import Base
from skillweave.base.load import load_model
from skillweave.delta import Delta, is_delta
from skillweave.errors import UserError
from skillweave.methods.training.settings import ModelSettings
from skillweave.patterns import TooSlow, bounded_search


@dataclass(frozen=True)
class Policy:
    """A point on the way from base to specialist.

    ``base``: the base's Hugging Face folder; ``trained``: None (the base itself), a delta's folder, a Hugging Face
    folder with the whole model in float32 (``train: full``), or PEFT's files (``train: lora``). Stages hand each other
    folders, so that a resumed run and an unbroken one start each stage from the same bits, and no two models are held
    at once.
    """

    base: Path
    ref: str
    device: torch.device
    trained: Path | None = None

    def open_to_sample(self, config: ModelSettings) -> Any:
        """The model in the precision it is trained in: with ``bf16`` the weights that autocast would show it."""
        dtype = torch.bfloat16 if config.autocast else torch.float32
        model: Any
        if config.train == "lora" and self.trained is not None:
            model = self._opened(self.base, dtype)
            model = PeftModel.from_pretrained(model, str(self.trained), autocast_adapter_dtype=False).to(dtype)
        else:
            model = self._whole(dtype)
        return model.to(self.device).eval()

    def open_to_train(self, config: ModelSettings, seed: int) -> Any:
        """A fresh copy whose trainable parameters are float32 and require gradients; nothing else does."""
        set_seed(seed)  # new adapters are drawn at random
        model: Any
        if config.train == "full":
            model = self._whole(torch.float32)
            mark_trainable(model, config.trainable)
        else:
            # The frozen base keeps its stored precision; PEFT holds the adapters in float32.
            model = self._opened(self.base, None if config.autocast else torch.float32)
            model = self._with_adapter(model, config)
        return model.to(self.device)

    def delta(self, base: Base, train: str) -> Delta:
        """What was trained, as a delta on ``base``. Raises ``ValueError`` where nothing was."""
        if self.trained is None:
            raise ValueError("nothing was trained: there is no delta")
        if is_delta(self.trained):
            return Delta.from_pretrained(self.trained)
        return Delta.from_lora(self.trained, base) if train == "lora" else Delta.between(base, self.trained)

    def _whole(self, dtype: torch.dtype) -> Any:
        """The model with all that was trained in its weights."""
        if self.trained is None or not is_delta(self.trained):
            return self._opened(self.trained or self.base, dtype)
        # Added in float32 and rounded once: on weights that were rounded first, most of a small delta would be lost.
        model = self._opened(self.base, torch.float32)
        Delta.from_pretrained(self.trained).add_to(model)
        return model.to(dtype)

    def _opened(self, folder: Path, dtype: torch.dtype | None) -> Any:
        """A model as its files hold it; the end tokens it generates with are the base's, trained or not."""
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
        # A name a person can use elsewhere, not where this machine keeps the files.
        model.peft_config["default"].base_model_name_or_path = self.ref
        return model


def mark_trainable(model: Any, which: str) -> None:
    """Let only the parameters named by ``which`` require gradients: 'all', 'linear' or a regex on their names.

    'linear' is the weights and biases of linear layers but the output head: embeddings, norms and head stay frozen,
    bit for bit. A regex that finds no parameter is a :class:`UserError`.
    """
    head = model.get_output_embeddings()
    linear = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
        for parameter in module.parameters(recurse=False)
    }
    found = False
    for name, parameter in model.named_parameters():
        wanted = id(parameter) in linear if which == "linear" else which == "all" or _named(which, name)
        parameter.requires_grad_(wanted)
        found = found or wanted
    if not found:
        names = ", ".join(name for name, _ in list(model.named_parameters())[:3])
        raise UserError(f"trainable '{which}' names no parameter of the base; its names look like: {names}")


def _named(pattern: str, name: str) -> bool:
    try:
        return bounded_search(pattern, name) is not None
    except (ValueError, TooSlow) as error:
        raise UserError(f"trainable: {error}") from error


def save_policy(model: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the trained model (or the adapter alone), whose tensors are ``state``, so that the next stage can open it.

    The tokenizer and how to generate stay the base's: TRL's note of the pad token there is no part of what was learnt.
    """
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, state_dict=state)
        (temporary / "generation_config.json").unlink(missing_ok=True)
        (temporary / "README.md").unlink(missing_ok=True)
