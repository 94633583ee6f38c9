"""Compare the layers that a LoRA file changes with those that its config names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from skillweave.base.checkpoint import Checkpoint
from skillweave.delta.adapter_config import CONFIG_FILE


def other_targets(config: Mapping[str, Any], changed: Collection[str], base: Checkpoint) -> str | None:
    """A warning if a plain LoRA has factors for other layers of ``base`` than ``target_modules`` names; None if not.

    ``changed`` are the base's names of the layers with factors. Only a list of names is compared: a pattern may be
    written for names that another version of transformers gives.
    """
    targets = config.get("target_modules")
    if not isinstance(targets, list) or config.get("exclude_modules") or config.get("layers_to_transform"):
        return None
    saved = config.get("modules_to_save") or ()
    named = {
        name
        for name, module in base.skeleton.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D) and _ends(name, targets) and not _ends(name, saved)
    }
    said = []
    if missing := sorted(named.difference(changed)):
        said.append(
            f"it has no factors for {len(missing)} of the {len(named)} layers that target_modules names "
            f"('{missing[0]}'), and they stay as in the base"
        )
    if more := sorted(set(changed) - named):
        said.append(
            f"it changes {len(more)} layers that target_modules does not name ('{more[0]}'), which PEFT would leave out"
        )
    return f"the file does not fit {CONFIG_FILE}: {'; '.join(said)}. Copy or save the adapter again." if said else None


def _ends(name: str, parts: Collection[str]) -> bool:
    return any(name == part or name.endswith(f".{part}") for part in parts)
