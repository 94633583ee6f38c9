"""Packs are proven when they are loaded: the right one passes, and one that does nothing or another is refused."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from helpers.micro import micro_model, micro_tokenizer
from helpers.weave_packs import random_pack
from skillweave.base import Base, Sampling, open_base
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.pack import Skillpack
from skillweave.pack.probe import PackProbe, compare, longest_probe
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import PackedModel, Weave, put_into_int8
from skillweave.weave.prove import record

GREEDY = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def base(micro_base) -> Base:
    return open_base(micro_base)


def probed(base: Base, seed: int, **options) -> Skillpack:
    pack = random_pack(base.model, base.fingerprint, name="skill", seed=seed, **options)
    packed = PackedModel(base.model)
    packed.add(packed.prepare("skill", pack))
    pack.card.probe = record(packed, "skill", base.tokenizer)
    return pack


def test_the_record_is_what_a_plain_forward_pass_says(base) -> None:
    pack = probed(base, 0)
    probe = pack.card.probe
    tuned = pack.unzip().apply(base)
    for model, kept in ((base.model, probe.base), (tuned.model, probe.pack)):
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([probe.ids])).logits[0].double().log_softmax(-1)
        found = [float(log_probs[at, token]) for at, token in zip(probe.at, probe.tokens, strict=True)]
        # The pack's products round the inputs of each layer to eight bits.
        assert found == pytest.approx(kept, abs=2e-4 if kept is probe.base else 0.3)
    assert probe.change > 0.3


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
def test_the_right_pack_passes_in_every_form_of_the_base(base, micro_base, form) -> None:
    pack = probed(base, 0)
    served = open_base(micro_base, dtype="bfloat16" if form == "bfloat16" else None)
    if form == "int8":
        put_into_int8(served)
    weave = Weave.of(served, {"other": probed(base, 1), "skill": pack})
    assert weave.loaded == ["other", "skill"]


def test_a_pack_under_the_card_of_another_is_refused_and_not_loaded(base) -> None:
    pack, other = probed(base, 0), probed(base, 1)
    wrong = Skillpack(pack.card.model_copy(update={"probe": other.card.probe}), pack.tensors)
    weave = Weave.of(base, {"skill": pack})
    weave.unload("skill")
    with pytest.raises(UserError, match=r"'skill' does not act as it did when it was zipped.*Zip it again"):
        Weave.of(base, {"skill": wrong})
    weave.load("skill")
    assert weave.loaded == ["skill"]


def test_a_pack_that_acts_as_the_base_is_refused_and_leaves_nothing(base, monkeypatch) -> None:
    weave = Weave.of(base, {"skill": probed(base, 0)})
    weave.unload("skill")
    monkeypatch.setattr(PackedModel, "_changes", lambda self, batch: {})
    with pytest.raises(UserError, match=r"distance 1\.00"):
        weave.load("skill")
    assert weave.loaded == []
    monkeypatch.undo()
    weave.load("skill")


def test_swapped_factors_are_refused(base) -> None:
    def of_equal_ranks(pack: Skillpack) -> bool:
        return len({entry.rank for entry in pack.card.entries.values()}) == 1

    pack = next(filter(of_equal_ranks, (probed(base, seed, only=("q_proj",)) for seed in range(100))))
    one, two = pack.card.entries
    tensors = dict(pack.tensors)
    for part in (".A", ".B", ".A_scale", ".B_scale"):
        tensors[one + part], tensors[two + part] = tensors[two + part], tensors[one + part]
    with pytest.raises(UserError, match="does not act"):
        Weave.of(base, {"skill": Skillpack(pack.card, tensors)})


def test_a_pack_that_needs_batches_of_its_own_is_proven_too(base) -> None:
    pack = probed(base, 0, whole=["model.embed_tokens.weight"], difference=["model.norm.weight"])
    assert Weave.of(base, {"skill": pack}).loaded == ["skill"]


def test_a_probe_with_tokens_that_the_model_lacks_is_an_error(base) -> None:
    pack = probed(base, 0)
    pack.card.probe = pack.card.probe.model_copy(update={"ids": (10**6,) * len(pack.card.probe.ids)})
    with pytest.raises(UserError, match="has the token 1000000"):
        Weave.of(base, {"skill": pack})


def test_zip_puts_a_probe_on_the_card_within_the_budget_and_it_survives_the_files(base, tmp_path) -> None:
    tuned = replace(base, model=micro_model(seed=1))
    with torch.no_grad():
        source = torch.Generator().manual_seed(5)
        for parameter in tuned.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source) * 0.05)
    tuned.model.save_pretrained(tmp_path / "tuned")
    micro_tokenizer().save_pretrained(tmp_path / "tuned")
    delta = Delta.between(base.path, tmp_path / "tuned")
    pack = zip_delta(delta, base, None, ZipConfig(budget=40_000, allow_left_out=True), name="skill")
    assert pack.card.probe.change > 0.1
    folder = pack.save_pretrained(tmp_path / "skill")
    assert sum(file.stat().st_size for file in folder.iterdir()) == pack.card.bytes.total <= 40_000
    read = Skillpack.from_pretrained(folder)
    assert (read.card.probe, read.card.schema_version) == (pack.card.probe, 5)
    assert len(read.card.probe.model_dump_json()) <= len(longest_probe(103).model_dump_json())
    weave = Weave.of(base)
    assert weave.shelf.add(folder) == "skill"
    weave.load("skill")
    with pytest.raises(UserError, match="has a pack 'skill' already"):
        weave.shelf.add(folder)
    weave.unload("skill")
    weave.load("skill")  # proven already: only its hashes are checked
    with pytest.raises(UserError, match="unload it before"):
        weave.shelf.forget("skill")
    weave.unload("skill")
    weave.shelf.forget("skill")
    assert (weave.packs, weave.loaded) == ([], [])


def test_packs_that_stay_unpacked_answer_alike_and_are_counted_once(base) -> None:
    packs = {"skill": probed(base, 0), "other": probed(base, 1)}
    one, two = Weave.of(base, packs), Weave.of(base, packs, unpacked_packs=None)
    prompts, names = ["1+1=", "hello", "abc"], ["skill", "other", None]
    assert one.generate(prompts, names, GREEDY) == two.generate(prompts, names, GREEDY)
    assert two.needed_bytes == two.base_bytes + two.resident_bytes
    held = {name: two.packed_model.held_bytes(name) for name in packs}
    assert two.resident_bytes == sum(held.values())
    two.unload("skill")
    assert two.resident_bytes == held["other"]
    assert two.packed_model.held_bytes("skill") == 0


def probe_of(pack, base) -> PackProbe:
    return PackProbe(ids=(1, 2, 3), at=(0, 1, 2)[: len(pack)], tokens=(1,) * len(pack), pack=pack, base=base)


def test_the_distance_by_hand() -> None:
    probe = probe_of((-1.0, -2.0), (-2.0, -4.0))
    assert compare(probe, (-1.0, -2.0), (-2.0, -4.0)).distance == 0
    silent = compare(probe, (-2.0, -4.0), (-2.0, -4.0))
    assert (silent.distance, silent.allowed, silent.outcome) == (1, 0.1, "differs")
    half = compare(probe, (-1.5, -3.0), (-2.0, -4.0))
    assert (half.distance, half.outcome) == (0.5, "differs")
    quarter = (-1.25, -2.5), (-2.0, -4.0)
    assert compare(probe, *quarter).outcome == "differs"
    assert compare(probe, *quarter, rerouted=True).outcome == "proven"
    assert compare(probe, (-1.5, -3.0), (-2.0, -4.0), rerouted=True).outcome == "differs"
    noisy = compare(probe, (-1.5, -2.5), (-2.5, -4.5))
    assert (noisy.distance, noisy.noise, noisy.outcome) == (0, 0.5, "proven")
    assert noisy.allowed == pytest.approx(0.1 + 1.5 * 0.5 / math.sqrt(2.5))
    assert compare(probe, (math.nan, -2.0), (-2.0, -4.0)).outcome == "differs"
    assert compare(probe, (-11.0, -2.0), (-12.0, -4.0)).outcome == "too small"
    nothing = probe_of((-1.0,), (-1.0,))
    assert compare(nothing, (-1.0,), (-1.0,)).outcome == "too small"


@pytest.mark.parametrize("keep", [False, True])
def test_loading_and_unloading_does_not_grow(micro_base, tmp_path, keep) -> None:
    code = f"""
import os
from helpers.weave_packs import random_pack
from skillweave.base import open_base
from skillweave.weave import Weave

def rss():
    return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE')

def load():
    weave.put(weave.shelf.read('skill', keep={keep}))

base = open_base({str(micro_base)!r})
weave = Weave.of(base, unpacked_packs=None)
pack = random_pack(base.model, base.fingerprint, rank=1500, bits=8)
weave.shelf.add(pack.save_pretrained({str(tmp_path / "skill")!r}))
del pack
for _ in range(5):
    load(); weave.unload('skill')
load()
size, before = weave.packed_model.held_bytes('skill'), rss()
weave.unload('skill')
freed = before - rss()
before = rss()
for _ in range(50):
    load(); weave.unload('skill')
grown = rss() - before
print(size, freed, grown)
assert size > 2 * 10**6 and freed > 0.9 * size and grown < 0.5 * size, (size, freed, grown)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="tests", check=False)
    assert result.returncode == 0, result.stderr
