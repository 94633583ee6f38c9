from __future__ import annotations

import json
import shutil

import pytest
import torch

from helpers.micro import micro_model, micro_tokenizer, save_micro
from helpers.weave_packs import random_pack
from skillweave.base import Sampling, open_base
from skillweave.base.precision import OVERRIDE
from skillweave.errors import UserError
from skillweave.weave import Reply, Weave, is_weave
from skillweave.weave.router import features, fit_on_features

GREEDY = Sampling(max_new_tokens=6)
PROMPTS = [f"{'word ' * (index % 4)}number {index}" for index in range(12)]


@pytest.fixture(scope="module")
def base(micro_base):
    return open_base(micro_base)


@pytest.fixture(scope="module")
def router(base):
    x = features(base, ["1+1=", "2+3=", "12+5=", "hello", "who are you", "tell me"], 1)
    return fit_on_features(x, torch.tensor([0, 0, 0, 1, 1, 1]), ["sums", "base"], layer=1)


@pytest.fixture(scope="module")
def packs(base):
    return {name: random_pack(base.model, base.fingerprint, name=name, seed=i) for i, name in enumerate(["sums", "b"])}


@pytest.fixture(scope="module")
def folder(base, packs, router, tmp_path_factory):
    return Weave.write(tmp_path_factory.mktemp("weave") / "w", base, packs, router)


def opened(folder, base, **options) -> Weave:
    return Weave.from_pretrained(folder, base=base, **options)


def test_it_opens_by_its_own_reference_and_answers_mixed_batches_row_by_row(folder, micro_base):
    weave = Weave.from_pretrained(folder)
    assert weave.packs == weave.loaded == ["sums", "b"]
    names = ["sums", None, "b"] * 4
    mixed = weave.generate(PROMPTS, names, GREEDY)
    assert [reply.pack for reply in mixed] == names
    assert all(reply.confidence is None for reply in mixed)
    for name in ("sums", None, "b"):
        alone = weave.generate(PROMPTS, name, GREEDY)
        assert [r for r in mixed if r.pack == name] == [r for r, own in zip(alone, names, strict=True) if own == name]
    assert {reply.text for reply in weave.generate(PROMPTS[:2], "b", GREEDY)}.isdisjoint(
        reply.text for reply in weave.generate(PROMPTS[:2], None, GREEDY)
    )
    assert weave.generate([], [], GREEDY) == []


def test_auto_is_the_routers_choice(folder, base):
    weave = opened(folder, base)
    routes = weave.route(["4+1=", "hello who"])
    assert [route.pack for route in routes] == ["sums", None]
    replies = weave.generate(["4+1=", "hello who", "x"], ["auto", "auto", "b"], GREEDY)
    assert [reply.pack for reply in replies] == ["sums", None, "b"]
    assert [reply.confidence for reply in replies] == [routes[0].confidence, routes[1].confidence, None]
    alone = weave.generate(["4+1="], "sums", GREEDY)[0]
    assert replies[0] == Reply(alone.text, "sums", routes[0].confidence, alone.ended)
    assert weave.route([]) == []


def test_load_and_unload_and_what_they_take(folder, base):
    weave = opened(folder, base, packs=["b"])
    assert weave.loaded == ["b"]
    one = weave.resident_bytes
    weave.load("sums")
    assert weave.loaded == ["b", "sums"]
    assert weave.resident_bytes > one
    weave.unload("sums")
    assert weave.resident_bytes == one
    with pytest.raises(UserError, match=r"'sums' is not loaded: call load\('sums'\)"):
        weave.generate(["x"], "sums")
    with pytest.raises(UserError, match="no pack 'sum'; did you mean 'sums'"):
        weave.generate(["x"], ["sum"])
    with pytest.raises(UserError, match="no pack 'zzz'"):
        weave.load("zzz")
    with pytest.raises(UserError, match="already loaded"):
        weave.load("b")
    with pytest.raises(UserError, match="2 prompts and 1 packs"):
        weave.generate(["x", "y"], ["b"])
    with pytest.raises(UserError, match="one answer a prompt"):
        weave.generate(["x"], None, Sampling(samples=2))
    with weave.packed_model.rows(["b"]), pytest.raises(UserError, match="while a batch is running"):
        weave.unload("b")


def test_only_the_named_packs_are_read(folder, base, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "w")
    (copy / "packs" / "sums" / "skillpack.safetensors").write_bytes(b"nothing")
    assert opened(copy, base, packs=["b"]).loaded == ["b"]
    with pytest.raises(UserError, match="damaged"):
        opened(copy, base)


def test_a_budget_is_kept_and_its_figures_are_told(folder, base):
    free = opened(folder, base)
    needed = free.needed_bytes
    assert opened(folder, base, budget=needed).loaded == ["sums", "b"]
    with pytest.raises(UserError, match=r"'b' takes .* kB; .* of the budget of .* Unload one of: sums"):
        opened(folder, base, budget=needed - 1)
    with pytest.raises(UserError, match="base alone"):
        opened(folder, base, budget=1000)


def test_the_budget_it_was_written_with_holds_until_another_is_named(base, packs, tmp_path):
    folder = Weave.write(tmp_path / "w", base, packs, budget=Weave.of(base, packs).base_bytes)
    with pytest.raises(UserError, match="'sums' takes"):
        opened(folder, base)
    assert opened(folder, base, budget=10**9).loaded == ["sums", "b"]


def test_a_weave_in_memory_answers_as_one_from_a_folder(folder, base, packs):
    assert is_weave(folder)
    assert not is_weave(folder / "packs")
    here, there = Weave.of(base, {"b": packs["b"]}), opened(folder, base, packs=["b"])
    assert here.generate(PROMPTS[:3], "b", GREEDY) == there.generate(PROMPTS[:3], "b", GREEDY)
    assert Weave.of(base).resident_bytes == 0


def test_another_base_is_refused(folder, tmp_path_factory, base, packs):
    other = save_micro(tmp_path_factory.mktemp("other") / "m", seed=5)
    with pytest.raises(UserError, match="woven for"):
        Weave.from_pretrained(folder, base=other)
    with pytest.raises(UserError, match="belongs on"):
        Weave.write(folder.parent / "x", open_base(other), packs)
    assert not (folder.parent / "x").exists()


def test_a_base_that_moved_is_named_with_the_way_out(folder, tmp_path, micro_base):
    copy = shutil.copytree(folder, tmp_path / "w")
    card = json.loads((copy / "weave.json").read_text())
    card["base"]["ref"] = str(tmp_path / "gone")
    (copy / "weave.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"(?s)gone.*cannot be opened.*base=\.\.\."):
        Weave.from_pretrained(copy)
    assert Weave.from_pretrained(copy, base=micro_base, packs=[]).loaded == []


def test_damaged_and_newer_and_missing_cards(folder, base, tmp_path):
    with pytest.raises(UserError, match=r"not a weave: it has no weave\.json"):
        Weave.from_pretrained(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "w")
    text = (copy / "weave.json").read_text()
    for broken, message in (
        (text[:20], "not valid JSON"),
        (text.replace('"schema_version": 2', '"schema_version": 3'), "schema version 3"),
        (text.replace('"packs"', '"pakcs"'), "packs: Field required"),
        ("[]", "expected a JSON object with keys"),
    ):
        (copy / "weave.json").write_text(broken)
        with pytest.raises(UserError, match=message):
            opened(copy, base)


def test_packs_are_written_under_the_names_given_and_copied_where_they_have_them(base, packs, router, tmp_path):
    saved = packs["b"].save_pretrained(tmp_path / "saved")
    folder = Weave.write(tmp_path / "w", base, {"b": saved, "c": saved})
    for file in saved.iterdir():
        assert (folder / "packs" / "b" / file.name).read_bytes() == file.read_bytes()
    weave = opened(folder, base)
    assert weave.generate(["x"], "b", GREEDY)[0].text == weave.generate(["x"], "c", GREEDY)[0].text
    with pytest.raises(UserError, match="no router"):
        weave.generate(["x"], "auto")
    # Written again, over itself, from a pack that lies in it.
    again = Weave.write(folder, base, {"d": folder / "packs" / "c"})
    assert [path.name for path in (again / "packs").iterdir()] == ["d"]
    assert opened(again, base).loaded == ["d"]


def test_names_that_cannot_be(base, packs, router, tmp_path):
    for name in ("auto", "base"):
        with pytest.raises(UserError, match="cannot name a pack: it stands for"):
            Weave.write(tmp_path / "w", base, {name: packs["b"]})
    with pytest.raises(UserError, match="would be one folder on a system that ignores case"):
        Weave.write(tmp_path / "w", base, {"b": packs["b"], "B": packs["b"]})
    with pytest.raises(UserError, match="cannot name a pack: use 1 to 64 letters"):
        Weave.write(tmp_path / "w", base, {"../up": packs["b"]})
    with pytest.raises(UserError, match="router sends prompts to 'sums'"):
        Weave.write(tmp_path / "w", base, {"b": packs["b"]}, router)
    assert list(tmp_path.iterdir()) == []


def test_dtype_auto_keeps_the_budget_where_float32_would_break_it(tmp_path, monkeypatch):
    monkeypatch.setenv(OVERRIDE, "0")
    micro_model().bfloat16().save_pretrained(tmp_path / "base")
    micro_tokenizer().save_pretrained(tmp_path / "base")
    narrow = open_base(tmp_path / "base", dtype="bfloat16")
    packs = {"a": random_pack(narrow.model, narrow.fingerprint, name="a")}
    budget = narrow.nbytes * 3 // 2
    folder = Weave.write(tmp_path / "w", narrow, packs, dtype="bfloat16", budget=budget)
    weave = Weave.from_pretrained(folder, dtype="auto")
    assert weave.base.model.dtype is torch.bfloat16
    assert Weave.from_pretrained(folder, dtype="auto", budget=4 * budget).base.model.dtype is torch.float32
    # The packs add to what float32 products give, whatever the weights are stored in.
    wide = Weave.from_pretrained(folder, dtype="float32", budget=4 * budget)
    assert [r.text for r in weave.generate(PROMPTS, "a", GREEDY)] == [
        r.text for r in wide.generate(PROMPTS, "a", GREEDY)
    ]
