"""Packs whose changes cannot differ from row to row: batches of their own, and the base's bits afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.micro_families import build, tune
from skillweave.base import Base, Sampling, open_base
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.micro import micro_tokenizer
from skillweave.pack import Skillpack, StackedEntry
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Weave

IDS = torch.randint(5, 100, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("experts")
    build("gpt_oss").save_pretrained(folder)
    micro_tokenizer().save_pretrained(folder)
    return open_base(folder, dtype="float32", device="cpu")


def pack_of(base: Base, seed: int, only: str = "", **settings) -> Skillpack:
    """A tune of the tensors whose name contains ``only``, zipped with room to spare."""
    before, after = base.model.state_dict(), tune(build("gpt_oss"), seed).state_dict()
    tensors = {name: after[name] - before[name] for name in before if only in name}
    delta = Delta(tensors, base_fingerprint=base.fingerprint)
    return zip_delta(delta, base, None, ZipConfig(**{"budget": "4MB", "bits": 8, **settings}), name="p")


@pytest.fixture(scope="module")
def weave(base: Base) -> Weave:
    return Weave.of(base, {"experts": pack_of(base, 1), "attention": pack_of(base, 2, "self_attn.q_proj")})


def bits(model: torch.nn.Module) -> dict[str, tuple[int, torch.Tensor]]:
    return {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}


def same(one: dict[str, tuple[int, torch.Tensor]], other: dict[str, tuple[int, torch.Tensor]]) -> bool:
    return all(place == other[name][0] and torch.equal(t, other[name][1]) for name, (place, t) in one.items())


@torch.no_grad()
def logits(weave: Weave, ids: torch.Tensor = IDS) -> torch.Tensor:
    return weave.base.model(input_ids=ids).logits


def test_the_pack_acts_and_the_base_is_itself_again(weave: Weave) -> None:
    before, plain = bits(weave.base.model), logits(weave)
    with torch.no_grad():
        wanted = tune(build("gpt_oss"), 1)(input_ids=IDS).logits
    with weave.packed_model.rows(["experts"] * 2):
        found = logits(weave)
    assert float((found - wanted).norm() / (wanted - plain).norm()) < 0.05
    with weave.packed_model.every_row("experts"):
        assert torch.equal(logits(weave, IDS[:1]), logits(weave, IDS[:1]))
        assert float((logits(weave) - found).norm()) < 1e-4
    with pytest.raises(ZeroDivisionError), weave.packed_model.rows(["experts"] * 2):
        _ = 1 / 0
    assert same(before, bits(weave.base.model))
    assert torch.equal(logits(weave), plain)


def test_it_shares_no_batch_and_says_why(weave: Weave) -> None:
    assert weave.packed_model.why_alone("attention") is None
    assert "experts" in weave.packed_model.why_alone("experts")
    before = bits(weave.base.model)
    for mix in (["experts", None], ["experts", "attention"]):
        message = r"'experts' must have a batch of its own, for 'model\..*generate"
        with pytest.raises(UserError, match=message), weave.packed_model.rows(mix):
            pass
    assert same(before, bits(weave.base.model))
    with weave.packed_model.rows(["attention", None]):  # and the next batch is not disturbed
        logits(weave)


def test_mixed_prompts_are_answered_in_batches_of_their_own(weave: Weave, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["one and two", "three", "four and five and six", "seven", "eight and nine"]
    names = ["experts", None, "attention", "experts", "attention"]
    weave._said_alone.clear()
    for _ in range(2):
        replies = weave.generate(prompts, names, Sampling(max_new_tokens=5))
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("The pack 'experts' answers in batches of its own") == 1
    assert [reply.pack for reply in replies] == names
    for prompt, name, reply in zip(prompts, names, replies, strict=True):
        assert weave.generate([prompt], name, Sampling(max_new_tokens=5))[0].text == reply.text
    assert "batches of its own" not in capsys.readouterr().err


@pytest.mark.parametrize(("codec", "bits", "near"), [("skillzip", 4, 0.2), ("skillzip", 8, 0.02), ("svd", 8, 0.02)])
def test_a_stack_of_experts_is_one_entry_read_back(
    base: Base, tmp_path: Path, codec: str, bits: int, near: float
) -> None:
    name = "model.layers.1.mlp.experts.down_proj"
    source = torch.Generator().manual_seed(0)
    change = torch.randn(4, 64, 3, generator=source) @ torch.randn(4, 3, 64, generator=source) * 1e-2
    shape = tuple(base.model.state_dict()[name].shape)
    change = change[:, : shape[1], : shape[2]].contiguous() if shape != change.shape else change
    change = torch.nn.functional.pad(change, (0, shape[2] - change.shape[2], 0, shape[1] - change.shape[1]))
    change[2] = 0
    delta = Delta({name: change}, base_fingerprint=base.fingerprint)
    config = ZipConfig(budget=60_000, codec=codec, bits=bits)
    made = zip_delta(delta, base, None, config, name="p")
    pack = Skillpack.from_pretrained(made.save_pretrained(tmp_path / "p"))
    entry = pack.card.entries[name]
    assert isinstance(entry, StackedEntry)
    assert entry.bits == (16 if codec == "svd" else 8)
    found = pack.decode(name)
    assert float((found - change).norm() / change.norm()) < near
    assert bool((found[2] == 0).all())
    assert pack.nbytes == sum(file.stat().st_size for file in (tmp_path / "p").iterdir()) <= 60_000


def test_experts_without_a_rank_count_as_left_out(base: Base) -> None:
    name = "model.layers.1.mlp.experts.down_proj"
    source = torch.Generator().manual_seed(0)
    change = torch.randn(base.model.state_dict()[name].shape, generator=source)
    change[3] *= 0.1
    delta = Delta({name: change}, base_fingerprint=base.fingerprint)
    pack = zip_delta(delta, base, None, ZipConfig(budget=3_560), name="p")
    ranks = pack.card.entries[name].ranks
    assert 0 in ranks
    share = sum(float(change[at].square().sum()) for at, rank in enumerate(ranks) if not rank) / change.square().sum()
    assert pack.card.codec.measured["left_out"][name] == pytest.approx(float(share), rel=0.05)
    assert name not in pack.card.left_out
