"""Make packs with random integer factors for the micro model, without zipping."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from skillweave.pack import BaseRef, Codec, DifferenceEntry, LowRankEntry, PackCard, Skillpack, WholeEntry, pack_int4

GROUPS = {
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "o",
    "gate_proj": "gateup", "up_proj": "gateup", "down_proj": "down",
}  # fmt: skip


def random_pack(
    model: nn.Module,
    fingerprint: str,
    *,
    name: str = "skill",
    seed: int = 0,
    bits: int = 4,
    smooth: bool = True,
    rank: int = 5,
    only: Sequence[str] = tuple(GROUPS),
    difference: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> Skillpack:
    """A pack with random low-rank entries for the linear layers in ``only``, of ranks from ``rank`` to ``rank`` + 3.

    ``difference`` and ``whole`` are names of tensors that get an entry of that kind instead. ``bits``: 4 or 8.
    """
    source = torch.Generator().manual_seed(seed)
    entries, tensors = {}, {}
    largest = 7 if bits == 4 else 127

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(-largest, largest + 1, shape, generator=source, dtype=torch.int8)

    for module_name, module in model.named_modules():
        parent, _, last = module_name.rpartition(".")
        if last not in only or not isinstance(module, nn.Linear):
            continue
        (out, inner), key, group = module.weight.shape, f"{module_name}.weight", f"{parent}:{GROUPS[last]}"
        r = rank + int(torch.randint(0, 4, (1,), generator=source))
        entries[key] = LowRankEntry(shape=(out, inner), rank=r, bits=bits, group=group, smooth=smooth)
        left, right = codes(out, r), codes(r, inner)
        tensors[f"{key}.A"], tensors[f"{key}.B"] = (pack_int4(left), pack_int4(right)) if bits == 4 else (left, right)
        tensors[f"{key}.A_scale"] = (torch.rand(out, generator=source) / largest).half()
        tensors[f"{key}.B_scale"] = (torch.rand(r, generator=source) * 0.2 / largest).half()
        if smooth:
            tensors[f"{group}.smooth"] = (torch.rand(inner, generator=source) + 0.5).half()
    state = model.state_dict()
    for key in difference:
        entries[key] = DifferenceEntry(shape=tuple(state[key].shape))
        tensors[key] = torch.randn(state[key].shape, generator=source) * 0.2
    for key in whole:
        entries[key] = WholeEntry(shape=tuple(state[key].shape))
        tensors[key] = state[key] + torch.randn(state[key].shape, generator=source) * 0.2
    card = PackCard(
        name=name, base=BaseRef(ref="micro", fingerprint=fingerprint), codec=Codec(name="random"), entries=entries
    )
    return Skillpack(card, tensors)
