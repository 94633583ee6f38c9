"""The promise of the mixed batch, on the real model."""

from __future__ import annotations

import pytest

from helpers.weave_packs import random_pack
from skillweave.base import Sampling, open_base
from skillweave.tasks import load_task
from skillweave.weave import Weave


@pytest.mark.slow
def test_a_mixed_batch_on_smollm2_answers_token_for_token_as_each_pack_alone() -> None:
    base = open_base("bundled:smollm2", dtype="float32")
    names = ["a", "b", "c"]
    # Factors this small move the answers away from the base's without turning them into noise.
    packs = {
        name: random_pack(base.model, base.fingerprint, name=name, seed=seed, rank=16, smooth=False)
        for seed, name in enumerate(names)
    }
    for pack in packs.values():
        for key in pack.tensors:
            if key.endswith(".A_scale"):
                pack.tensors[key] *= 0.02
    weave = Weave.of(base, packs)
    prompts = [entry.prompt for entry in load_task("builtin:json_calls").split("test")[:12]]
    chosen = [[*names, None][row % 4] for row in range(12)]
    sampling = Sampling(max_new_tokens=24)
    mixed = [reply.text for reply in weave.generate(prompts, chosen, sampling)]
    alone = [weave.generate([prompt], [name], sampling)[0].text for prompt, name in zip(prompts, chosen, strict=True)]
    plain = [reply.text for reply in weave.generate(prompts, None, sampling)]
    assert mixed == alone
    changed = [name for name, one, other in zip(chosen, mixed, plain, strict=True) if one != other]
    assert None not in changed
    assert len(changed) >= 3
