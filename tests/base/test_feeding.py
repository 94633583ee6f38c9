"""How modules are fed, on toys whose answer is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers.micro_families import build
from skillweave.base import Checkpoint
from skillweave.base.feeding import Fed, feeding
from skillweave.base.layout import Layout


class Toy(nn.Module):
    """Not a language model of use: each layer is used in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 8)
        self.places = nn.Embedding(16, 8)
        self.plain = nn.Linear(8, 8)
        self.flat = nn.Linear(8, 8)
        self.gathered = nn.Linear(8, 8)
        self.read_directly = nn.Linear(8, 8, bias=False)
        self.both = nn.Linear(8, 8, bias=False)
        self.never = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.asked_only = nn.Linear(8, 8)
        self.config = SimpleNamespace()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        x = self.embed(input_ids) * 2
        x = x + self.places(torch.arange(input_ids.shape[1])[None])
        x = x + self.plain(x)
        rows, tokens = input_ids.shape
        x = x + self.flat(x.view(rows * tokens, -1)).view(x.shape)
        mine = (input_ids % 2 == 0).flatten().nonzero().flatten()
        sent = self.gathered(x.flatten(0, 1)[mine])
        x = x.flatten(0, 1).index_add(0, mine, sent).view(x.shape)
        x = x + nn.functional.linear(x, self.read_directly.weight)
        x = x + self.both(x) + x @ self.both.weight.T
        x = x + self.asked_only(x).to(self.asked_only.weight.dtype) * self.asked_only.weight.shape[0]
        return self.norm(x)


def test_each_way_of_being_fed_is_told_from_the_others() -> None:
    torch.manual_seed(0)
    found = feeding(Toy())
    assert found["embed"] == Fed("rows", "lookup")
    assert found["places"] == Fed("rows", "lookup")
    assert found["plain"] == Fed("rows", "linear")
    assert found["flat"] == Fed("flat", "linear")
    assert found["gathered"] == Fed("any", "linear")
    assert found["norm"] == Fed("rows", None)
    assert found["asked_only"] == Fed("rows", "linear")
    assert not {"read_directly", "both", "never"} & set(found)


def test_the_model_is_left_as_it_was() -> None:
    toy = Toy().train()
    feeding(toy)
    assert toy.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in toy.modules())


@pytest.mark.parametrize(
    ("family", "module", "expected"),
    [
        ("gpt2", "transformer.h.0.attn.c_attn", Fed("rows", "transposed")),
        ("gpt2", "transformer.wpe", Fed("rows", "lookup")),
        ("opt", "model.decoder.layers.0.fc1", Fed("flat", "linear")),
        ("gemma3_text", "model.embed_tokens", Fed("rows", "lookup", 8.0)),
        ("qwen2_moe", "model.layers.0.mlp.shared_expert.up_proj", Fed("flat", "linear")),
        ("mamba", "backbone.layers.0.mixer.conv1d", None),  # a step of decoding reads its weight
    ],
)
def test_modules_of_real_families(family: str, module: str, expected: Fed | None) -> None:
    assert feeding(build(family)).get(module) == expected


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "granitemoe", "llama", "jamba"])
def test_a_layout_joins_the_files_tensors_into_the_models(family: str, tmp_path: Path) -> None:
    model = build(family)
    model.save_pretrained(tmp_path)
    files, layout, state = Checkpoint(tmp_path), Layout(model), model.state_dict()
    made = {}
    for name in files.names():
        target, joined = layout.place(name)
        made |= layout.joined(target, files.tensor) if joined else {target: files.tensor(name)}
    assert set(made) >= set(state) - set(Checkpoint(model).tied)
    assert all(torch.equal(made[name], state[name]) for name in made)


def test_a_missing_part_counts_as_zeros() -> None:
    layout = Layout(build("mixtral"))
    target, joined = layout.place("model.layers.0.block_sparse_moe.experts.1.w1.weight")
    assert joined
    made = layout.joined(target, lambda name: torch.ones(96, 64) if ".experts.1.w1." in name else None)
    (stack,) = made.values()
    assert float(stack.sum()) == 96 * 64
    assert bool((stack[1, :96] == 1).all())
