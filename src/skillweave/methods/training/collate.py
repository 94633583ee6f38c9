"""Turns token ids of prompts and answers into padded tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

TokenRow = tuple[list[int], list[int]]
"""The token ids of a prompt, and those of an answer to it."""


def padded(rows: Sequence[TokenRow], pad: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """``input_ids``, ``attention_mask`` and ``labels`` of a batch: all (N, T) int64, padded on the right.

    The labels are -100 except on the answers. ``pad`` is the id of the pad token.
    """
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, mask, labels = [], [], []
    for prompt, answer in rows:
        room = width - len(prompt) - len(answer)
        ids.append(prompt + answer + [pad] * room)
        mask.append([1] * (width - room) + [0] * room)
        labels.append([-100] * len(prompt) + answer + [-100] * room)
    names = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.tensor(values, device=device) for name, values in names.items()}
