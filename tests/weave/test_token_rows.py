"""Packs with token rows of their own: in one batch with others, each answers as the unzipped model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.travelling import model, save, tokenizer, tuned
from skillweave.base import Sampling, generate_answers, open_base, open_tokenizer
from skillweave.delta import Delta, write_tuned
from skillweave.errors import UserError
from skillweave.pack import RowsEntry, Skillpack
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Weave, put_into_int8

ROWS = 112
KINDS = {"untied": {}, "tied": {"tie": True}, "with a bias": {"bias": True}}
TUNES = {"added": (ROWS + 3, ("<a>", "<b>", "<c>")), "padded": (ROWS + 16, ("<a>",)), "trimmed": (100, ())}


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """A base, its open form, and a pack of each tune, through files."""
    place = tmp_path_factory.mktemp("rows")
    kind = KINDS[request.param]
    base = save(place / "base", model(ROWS, **kind), tokenizer())
    opened = open_base(base, device="cpu")
    packs = {}
    for seed, (name, (rows, added)) in enumerate(TUNES.items()):
        folder = save(place / name, tuned(model(ROWS, **kind), rows, seed=seed), tokenizer(*added))
        pack = zip_delta(Delta.between(base, folder), opened, None, ZipConfig(ratio=1, bits=8), name=name)
        packs[name] = Skillpack.from_pretrained(pack.save_pretrained(place / "packs" / name))
        write_tuned(base, packs[name].unzip(), place / f"{name}-back", dtype="float32")
    return place, opened, packs


def test_only_the_rows_that_one_side_has_are_stored(made) -> None:
    _, _, packs = made
    for name, (rows, _) in TUNES.items():
        found = {key: entry for key, entry in packs[name].card.entries.items() if isinstance(entry, RowsEntry)}
        assert found
        assert {entry.shape[0] for entry in found.values()} == {rows}
        stored = {key: packs[name].tensors[key].shape[0] for key in found if key in packs[name].tensors}
        assert set(stored.values()) == ({rows - ROWS} if rows > ROWS else set())
        # no other row of the vocabulary changed
        assert not any(key.removesuffix(".rows") in packs[name].card.entries for key in found)
        assert packs[name].card.left_out == []


def test_unzipped_has_the_rows_of_the_tune(made) -> None:
    place, _, _ = made
    for name, (rows, _) in TUNES.items():
        back, tune = (AutoModelForCausalLM.from_pretrained(place / folder) for folder in (f"{name}-back", name))
        assert back.config.vocab_size == rows
        ours, theirs = back.get_input_embeddings().weight, tune.get_input_embeddings().weight
        assert torch.equal(ours[: min(rows, ROWS)], theirs[: min(rows, ROWS)])
        assert torch.allclose(ours, theirs, rtol=2**-8, atol=0)  # added rows are bfloat16
        head, other = back.get_output_embeddings(), tune.get_output_embeddings()
        assert torch.allclose(head.weight, other.weight, rtol=2**-8, atol=0)
        if getattr(head, "bias", None) is not None:
            assert torch.allclose(head.bias, other.bias, rtol=2**-8, atol=0)


@torch.no_grad()
@pytest.mark.parametrize(("form", "near"), [("dtype", 0.05), ("int8", 0.15)])
def test_a_mixed_batch_gives_each_row_the_logits_of_its_own_model(made, form, near) -> None:
    place, opened, packs = made
    if form == "int8":
        opened = put_into_int8(open_base(place / "base", device="cpu"))
    weave = Weave.of(opened, packs)
    alone = {name: AutoModelForCausalLM.from_pretrained(place / f"{name}-back").eval() for name in TUNES}
    names = ["added", None, "padded", "trimmed", "added", None]
    ids = torch.randint(3, 98, (6, 7), generator=torch.Generator().manual_seed(3))
    ids[0, 2], ids[4, 5], ids[2, 0] = ROWS + 2, ROWS, ROWS + 15  # tokens that only these packs have
    before = opened.model.state_dict()
    with weave.packed_model.rows(names):
        mixed = opened.model(input_ids=ids).logits
    assert mixed.shape[-1] == ROWS + 16
    for row, name in enumerate(names):
        own = opened.model if name is None else alone[name]
        expected = own(input_ids=ids[row : row + 1]).logits[0]
        rows = expected.shape[-1]
        # the unzipped model adds the factors to the weights, the woven one runs them in integers
        assert torch.allclose(mixed[row, :, :rows], expected, atol=near * float(expected.abs().max())), name
        assert bool((mixed[row, :, rows:] == -torch.inf).all())
    assert all(torch.equal(before[name], tensor) for name, tensor in opened.model.state_dict().items())
    assert opened.model(input_ids=ids[1:2]).logits.shape[-1] == ROWS


def test_alone_is_as_in_a_mixed_batch(made) -> None:
    _, opened, packs = made
    weave = Weave.of(opened, packs)
    prompts = ["one", "another one", "<a>b<c>", "four", "x"]
    names = ["added", "trimmed", "added", None, "padded"]
    mixed = weave.generate(prompts, names, Sampling(max_new_tokens=12))
    for prompt, name, reply in zip(prompts, names, mixed, strict=True):
        assert weave.generate([prompt], name, Sampling(max_new_tokens=12))[0].text == reply.text
    plain = generate_answers(opened.model, opened.tokenizer, ["four"], Sampling(max_new_tokens=12))
    assert mixed[3].text == plain[0][0].text


def test_no_row_writes_a_token_that_its_model_does_not_have(made) -> None:
    _, opened, packs = made
    weave = Weave.of(opened, packs)
    with torch.no_grad(), weave.packed_model.every_row("trimmed"):
        for count in (1, 3):
            logits = opened.model(input_ids=torch.full((count, 4), 40)).logits
            assert bool((logits[..., 100:] == -torch.inf).all())
            assert bool(logits[..., :100].isfinite().all())


def test_a_token_without_a_row_is_told(made) -> None:
    _, opened, packs = made
    weave = Weave.of(opened, packs)
    with pytest.raises(UserError, match=r"prompt 2 holds the token '<b>' \(id 99\), and the model has rows for 98"):
        generate_answers(model(98), tokenizer("<a>", "<b>"), ["a", "<b>"])
    assert weave.voice("trimmed").rows == 100
    assert weave.voice(None).rows is None


def test_a_pack_with_changed_shared_rows_keeps_the_added_ones(tmp_path: Path) -> None:
    base = save(tmp_path / "base", model(ROWS), tokenizer())
    folder = save(tmp_path / "tuned", tuned(model(ROWS), ROWS + 2, vocabulary=True), tokenizer("<a>", "<b>"))
    opened = open_base(base, device="cpu")
    pack = zip_delta(Delta.between(base, folder), opened, None, ZipConfig(ratio=1, bits=8), name="p")
    assert pack.card.entries["lm_head.weight"].shape == (ROWS, 32)  # the head's difference has the base's shape
    assert pack.card.entries["lm_head.weight.rows"].shape == (ROWS + 2, 32)
    back = AutoModelForCausalLM.from_pretrained(write_tuned(base, pack.unzip(), tmp_path / "back"))
    weave = Weave.of(opened, {"p": pack})
    ids = torch.tensor([[40, ROWS + 1, 50, ROWS], [40, 41, 42, 43]])
    with torch.no_grad(), weave.packed_model.rows(["p", None]):
        mixed = opened.model(input_ids=ids).logits
    with torch.no_grad():
        expected = back(input_ids=ids[:1]).logits[0]
        assert torch.allclose(mixed[0], expected, atol=0.05 * float(expected.abs().max()))
        assert torch.allclose(mixed[1, :, :ROWS], opened.model(input_ids=ids[1:]).logits[0], atol=1e-5)


def test_rows_of_real_tokens_may_not_go(tmp_path: Path) -> None:
    base = save(tmp_path / "base", model(ROWS), tokenizer())
    folder = save(tmp_path / "tuned", tuned(model(ROWS), 90), tokenizer())
    with pytest.raises(UserError, match=r"has 90 token rows where its base has 112.*the token 'w' has the id 90"):
        zip_delta(Delta.between(base, folder), open_base(base, device="cpu"), None, ZipConfig(ratio=1), name="p")


def test_unlike_embedding_and_head_are_told(tmp_path: Path) -> None:
    base = save(tmp_path / "base", model(ROWS), tokenizer())
    odd = model(ROWS)
    odd.lm_head = torch.nn.Linear(32, ROWS + 4, bias=False)
    odd.save_pretrained(tmp_path / "odd")
    with pytest.raises(UserError, match=r"'lm_head.weight' has the shape \(116, 32\) in the files, and \(112, 32\)"):
        Delta.between(base, tmp_path / "odd")


def test_a_scaled_embedding_scales_added_rows(tmp_path: Path) -> None:
    """Gemma multiplies what its embedding looks up, and caps its logits: a masked one must stay out of reach."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    shape = Gemma2Config(
        vocab_size=ROWS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, head_dim=16,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=2,
        initializer_range=0.3, final_logit_softcapping=5.0,
    )  # fmt: skip
    base = save(tmp_path / "base", Gemma2ForCausalLM(shape), tokenizer())
    changed = tuned(AutoModelForCausalLM.from_pretrained(base), ROWS + 2)
    folder = save(tmp_path / "tuned", changed, tokenizer("<a>", "<b>"))
    opened = open_base(base, device="cpu")
    pack = zip_delta(Delta.between(base, folder), opened, None, ZipConfig(ratio=1, bits=8), name="p")
    back = AutoModelForCausalLM.from_pretrained(write_tuned(base, pack.unzip(), tmp_path / "back")).eval()
    ids = torch.tensor([[40, ROWS + 1, 50, ROWS], [40, 41, 42, 43]])
    with torch.no_grad(), Weave.of(opened, {"p": pack}).packed_model.rows(["p", None]):
        mixed = opened.model(input_ids=ids).logits
    with torch.no_grad():
        expected = back(input_ids=ids[:1]).logits[0]
    assert torch.allclose(mixed[0], expected, atol=0.1 * float(expected.abs().max()))
    assert bool((mixed[1, :, ROWS:] == -torch.inf).all())


def test_the_pad_token_need_not_have_a_row(tmp_path: Path) -> None:
    base = save(tmp_path / "base", model(98), tokenizer(pad_token="[PAD]"))
    assert open_tokenizer(base).pad_token_id == 98
    opened = open_base(base, device="cpu")
    assert opened.tokenizer.pad_token_id == 1
    together = generate_answers(
        opened.model, opened.tokenizer, ["hello", "a longer prompt"], Sampling(max_new_tokens=5)
    )
    alone = generate_answers(opened.model, opened.tokenizer, ["hello"], Sampling(max_new_tokens=5))
    assert together[0][0].text == alone[0][0].text
