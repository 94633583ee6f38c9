from __future__ import annotations

import copy

import pytest
import torch

from helpers.micro import micro_model
from helpers.weave_packs import random_pack
from skillweave.base import fingerprint
from skillweave.errors import UserError
from skillweave.pack import DifferenceEntry, FactorsEntry, Skillpack
from skillweave.weave import PackedModel, change, compiled

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def plain():
    return micro_model(seed=3)


@pytest.fixture(scope="module")
def packs(plain) -> dict[str, Skillpack]:
    mark = fingerprint(plain)
    return {
        "a": random_pack(plain, mark, seed=1),
        "b": random_pack(plain, mark, seed=2, bits=8, smooth=False, rank=3, only=("q_proj", "v_proj", "down_proj")),
        "c": random_pack(plain, mark, seed=3, difference=(NORM, EMBEDDING), whole=("model.norm.weight",)),
    }


@pytest.fixture
def laid(plain, packs) -> PackedModel:
    made = PackedModel(copy.deepcopy(plain))
    for name, pack in packs.items():
        made.add(made.prepare(name, pack))
    return made


@torch.no_grad()
def logits(model, ids, mask=None):
    return model(ids, attention_mask=mask).logits


def batch(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 100, (rows, width), generator=torch.Generator().manual_seed(seed))


def dense(plain, pack):
    """The base with the pack's float delta added, the slow way."""
    model = copy.deepcopy(plain)
    state = model.state_dict()
    for name, entry in pack.card.entries.items():
        if entry.kind == "whole":
            state[name].copy_(pack.tensors[name])
        else:
            state[name].add_(pack.decode(name))
    return model


MIX = ["a", None, "b", "c", "c", "a", None, "b", "b", "a", "c", None]


@pytest.mark.parametrize("limit", [0, 10**9])
def test_a_mixed_batch_gives_every_row_what_its_pack_gives_alone(plain, laid, monkeypatch, limit):
    monkeypatch.setattr(change, "STACKED_UP_TO", limit)
    ids = batch(12, 9)
    with laid.rows(MIX):
        mixed = logits(laid.model, ids)
    for name in (None, "a", "b", "c"):
        with laid.rows([name] * 12):
            alone = logits(laid.model, ids)
        mine = torch.tensor([row == name for row in MIX])
        torch.testing.assert_close(mixed[mine], alone[mine], rtol=1e-4, atol=1e-4)
    base = logits(plain, ids)
    assert torch.equal(mixed[[1, 6, 11]], base[[1, 6, 11]])
    assert not torch.allclose(mixed[0], base[0], atol=0.1)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_pack_is_its_unzipped_delta_up_to_quantisation(plain, laid, packs, name):
    ids = batch(4, 20)
    with laid.rows([name] * 4):
        got = logits(laid.model, ids)
    want, base = logits(dense(plain, packs[name]), ids), logits(plain, ids)
    assert (got - want).norm() < 0.1 * (want - base).norm()


def test_generation_with_left_padding_is_token_for_token_the_same(plain, laid):
    ids, mask = batch(12, 8), torch.ones(12, 8, dtype=torch.long)
    for row in range(12):
        mask[row, : row % 4] = 0
    ids = torch.where(mask.bool(), ids, 0)

    def run(model):
        return model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)

    with laid.rows(MIX):
        mixed = run(laid.model)
    for name in ("a", "b", "c"):
        with laid.rows([name] * 12):
            alone = run(laid.model)
        mine = [index for index, row in enumerate(MIX) if row == name]
        width = min(mixed.shape[1], alone.shape[1])
        assert torch.equal(mixed[mine, :width], alone[mine, :width])
    width = min(mixed.shape[1], (base := run(plain)).shape[1])
    assert torch.equal(mixed[[1, 6, 11], :width], base[[1, 6, 11], :width])
    assert not torch.equal(mixed[:, :width], base[:, :width])


def test_no_pack_at_all_and_outside_of_rows_is_the_base_to_the_bit(plain, laid):
    ids = batch(3, 5)
    base = logits(plain, ids)
    with laid.rows([None] * 3):
        assert torch.equal(logits(laid.model, ids), base)
    with pytest.raises(ZeroDivisionError), laid.rows(["a"] * 3):
        _ = 1 / 0
    assert torch.equal(logits(laid.model, ids), base)
    assert laid.model.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("name", ["a", "b", "c", None])
def test_one_pack_for_every_row_whatever_their_number(plain, laid, name):
    with laid.every_row(name):
        several = {rows: logits(laid.model, batch(rows, 6)) for rows in (1, 5, 2)}
    for rows, got in several.items():
        with laid.rows([name] * rows):
            assert torch.equal(got, logits(laid.model, batch(rows, 6)))
    assert torch.equal(several[5], logits(plain, batch(5, 6))) == (name is None)


def test_one_row_and_one_token(plain, laid):
    ids = batch(1, 1)
    with laid.rows(["a"]):
        assert not torch.allclose(logits(laid.model, ids), logits(plain, ids), atol=0.01)


def test_bfloat16(plain, packs):
    laid = PackedModel(copy.deepcopy(plain).bfloat16())
    for name, pack in packs.items():
        laid.add(laid.prepare(name, pack))
    ids = batch(4, 6)
    with laid.rows(["a", None, "b", "c"]):
        got = logits(laid.model, ids)
    base = logits(copy.deepcopy(plain).bfloat16(), ids)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got[1], base[1])
    for row, name in ((0, "a"), (2, "b"), (3, "c")):
        want = logits(dense(plain, packs[name]), ids)[row]
        assert (got[row].float() - want).norm() < 0.2 * (want - base[row].float()).norm()


def test_the_first_product_is_shared_by_the_modules_of_a_group(laid, monkeypatch):
    calls = []
    monkeypatch.setattr(compiled, "compiled", lambda: None)
    real = change.into_rank
    monkeypatch.setattr(change, "into_rank", lambda x, segment: calls.append(1) or real(x, segment))
    with laid.rows(["a"] * 2):
        logits(laid.model, batch(2, 3))
    assert len(calls) == 2 * 4  # layers * (qkv, o, gate-up, down)


def test_float_factors_of_a_peer_are_served_too(plain):
    key = "model.layers.1.mlp.up_proj.weight"
    out, inner = plain.state_dict()[key].shape
    pack = random_pack(plain, "x", only=())
    source = torch.Generator().manual_seed(0)
    pack.card.entries[key] = FactorsEntry(shape=(out, inner), rank=2)
    pack.tensors[f"{key}.A"] = torch.randn(out, 2, generator=source).bfloat16()
    pack.tensors[f"{key}.B"] = torch.randn(2, inner, generator=source).bfloat16()
    laid = PackedModel(copy.deepcopy(plain))
    laid.add(laid.prepare("svd", pack))
    ids = batch(2, 4)
    with laid.rows([None, "svd"]):
        got = logits(laid.model, ids)
    assert torch.equal(got[0], logits(plain, ids)[0])
    torch.testing.assert_close(got[1], logits(dense(plain, pack), ids)[1], rtol=1e-4, atol=1e-4)


def test_biases_may_differ_from_row_to_row():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model = Qwen2ForCausalLM(Qwen2Config(**size, num_attention_heads=4, num_key_value_heads=2)).eval()
    pack = random_pack(model, "x", difference=["model.layers.0.self_attn.q_proj.bias"])
    laid = PackedModel(copy.deepcopy(model))
    laid.add(laid.prepare("p", pack))
    ids = torch.randint(0, 50, (3, 4))
    with laid.rows(["p", None, "p"]):
        got = logits(laid.model, ids)
    want, base = logits(dense(model, pack), ids), logits(model, ids)
    assert torch.equal(got[1], base[1])
    assert (got - want)[[0, 2]].norm() < 0.1 * (want - base)[[0, 2]].norm()


def test_what_is_resident_is_counted_and_freed(plain, packs):
    laid = PackedModel(copy.deepcopy(plain))
    assert laid.resident_bytes == 0
    assert laid.base_bytes == sum(p.nbytes for p in plain.parameters()) + sum(b.nbytes for b in plain.buffers())
    sizes = {}
    for name, pack in packs.items():
        ready = laid.prepare(name, pack)
        sizes[name] = ready.nbytes
        laid.add(ready)
    assert laid.resident_bytes == sum(sizes.values())
    # The embedding is tied: both the embedding and the head use one changed copy.
    assert sizes["c"] - sizes["a"] == pytest.approx(plain.state_dict()[EMBEDDING].nbytes, rel=0.2)
    laid.remove("b")
    assert laid.resident_bytes == sizes["a"] + sizes["c"]
    assert laid.packs == ["a", "c"]
    ids = batch(2, 4)
    with laid.rows(["c", "a"]):
        after = logits(laid.model, ids)
    fresh = PackedModel(copy.deepcopy(plain))
    for name in ("a", "c"):
        fresh.add(fresh.prepare(name, packs[name]))
    with fresh.rows(["c", "a"]):
        assert torch.equal(after, logits(fresh.model, ids))


def test_mistakes_are_named(plain, laid, packs):
    with pytest.raises(UserError, match="'ab' is not loaded"), laid.rows(["ab"]):
        pass
    with pytest.raises(UserError, match="already loaded"):
        laid.add(laid.prepare("a", packs["a"]))
    with pytest.raises(UserError, match="'z' is not loaded"):
        laid.remove("z")
    with laid.rows(["a", None]):
        with pytest.raises(UserError, match=r"2 rows, and .* is fed 3"):
            logits(laid.model, batch(3, 2))
        with pytest.raises(UserError, match="cannot be unloaded while"):
            laid.remove("a")
        with pytest.raises(UserError, match="already running"), laid.rows(["a"]):
            pass
    laid.remove("a")


def test_packs_that_cannot_be_woven_are_refused_with_the_tensor_and_the_way_out(plain):
    laid = PackedModel(plain)
    stranger = random_pack(plain, "x", only=())
    stranger.card.entries["model.layers.7.mlp.weight"] = DifferenceEntry(shape=(3,))
    with pytest.raises(UserError, match=r"model\.layers\.7\.mlp\.weight"):
        laid.prepare("p", stranger)
    grown = random_pack(plain, "x", only=())
    grown.card.entries[EMBEDDING] = DifferenceEntry(shape=(150, 64))
    with pytest.raises(UserError, match=r"embed_tokens.*\(150, 64\).*unzip"):
        laid.prepare("p", grown)
