"""A micro base with a specialist that was trained on a few sums: its change is a real one, large and of high rank."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from skillweave.base import Base, answer_ids, open_base, prompt_ids
from skillweave.base.batching import padded
from skillweave.delta import Delta

SUMS = [(f"what is {i} and {(7 * i) % 40}", f"it is {i + (7 * i) % 40}") for i in range(40)]
"""(prompt, answer) pairs; a specialist learns the first 32 of them."""
UNSEEN = [(f"what is {i} and {i}", f"it is {2 * i}") for i in range(41, 49)]


def trained_specialist(folder: Path, *, steps: int = 60) -> tuple[Base, Delta]:
    """Open the base in ``folder``, and train all of its weights on the sums."""
    base = open_base(folder, dtype="float32", device="cpu")
    model = copy.deepcopy(base.model).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    rows = [(prompt_ids(base.tokenizer, prompt), answer_ids(base.tokenizer, answer)) for prompt, answer in SUMS[:32]]
    for step in range(steps):
        optimizer.zero_grad()
        model(**padded(rows[8 * step % 32 : 8 * step % 32 + 8], 0)).loss.backward()
        optimizer.step()
    tuned = model.state_dict()
    changed = {name: (tuned[name] - value).detach() for name, value in base.model.state_dict().items()}
    changed.pop("lm_head.weight", None)  # tied
    return base, Delta(changed, base_fingerprint=base.fingerprint)
