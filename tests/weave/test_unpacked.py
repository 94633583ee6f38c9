"""Packs stay entropy coded until a batch uses them, and the ones used last stay unpacked: same numbers, less memory."""

from __future__ import annotations

import copy
import mmap
import subprocess
import sys
import weakref

import pytest
import torch

from helpers.factors import random_factors
from helpers.micro import micro_model
from helpers.weave_packs import random_pack
from skillweave.base import fingerprint
from skillweave.errors import UserError
from skillweave.pack import LowRank, entropy
from skillweave.weave import PackedModel, compiled, widened
from skillweave.weave.coded_factors import CodedFactors, Target

CPU = torch.device("cpu")
NAMES = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def plain():
    return micro_model(seed=3)


@pytest.fixture(scope="module")
def packs(plain):
    mark = fingerprint(plain)
    return {
        name: random_pack(plain, mark, seed=seed, bits=8 if name == "c" else 4, smooth=name != "d")
        for seed, name in enumerate(NAMES)
    }


def loaded(plain, packs, limit: int) -> PackedModel:
    made = PackedModel(copy.deepcopy(plain), limit)
    for name, pack in packs.items():
        made.add(made.prepare(name, pack))
    return made


@torch.no_grad()
def answers(packed: PackedModel, names) -> torch.Tensor:
    ids = torch.randint(5, 100, (len(names), 7), generator=torch.Generator().manual_seed(1))
    with packed.rows(names):
        return packed.model(ids).logits


def test_the_numbers_do_not_depend_on_what_stays_unpacked(plain, packs):
    batches = [["a", None, "b"], ["c", "c"], ["d", "a", "b", "c"], ["a"], [None], ["b", "d", "a"]]
    every = loaded(plain, packs, 10)
    wanted = [answers(every, names) for names in batches]
    for limit in (0, 1, 2):
        packed = loaded(plain, packs, limit)
        assert all(torch.equal(answers(packed, names), own) for names, own in zip(batches, wanted, strict=True))
        assert len(packed.unpacked) == limit


def test_the_packs_used_last_stay_unpacked(plain, packs):
    packed = loaded(plain, packs, 2)
    coded = packed.resident_bytes
    assert packed.unpacked == []
    for names, left in [
        (["a"], ["a"]),
        (["b", None], ["a", "b"]),
        (["a", "a"], ["b", "a"]),
        (["c"], ["a", "c"]),
        ([None], ["a", "c"]),
        (["d", "a", "b"], ["d", "b"]),
    ]:
        with packed.rows(names):
            assert {*names} - {None} <= {*packed.unpacked}
            assert len(packed.unpacked) <= max(2, len({*names} - {None}))
        assert packed.unpacked == left
    one = {name: packed.prepare(name, pack).unpacked_nbytes for name, pack in packs.items()}
    assert packed.resident_bytes == coded + one["d"] + one["b"]
    assert packed.needed_bytes() == coded + sum(sorted(one.values())[-2:])
    packed.remove("d")
    assert packed.unpacked == ["b"]
    with pytest.raises(UserError, match="0 or more"):
        PackedModel(plain, -1)


def test_a_batch_that_fails_leaves_no_more_unpacked_than_others(plain, packs):
    packed = loaded(plain, packs, 1)
    with pytest.raises(ZeroDivisionError), packed.rows(["a", "b", "c"]):
        1 / 0  # noqa: B018
    assert packed.unpacked == ["c"]


@pytest.fixture
def buffers(monkeypatch):
    """The memory of the codes that the compiled functions read, as long as anything holds it."""
    if compiled.compiled() is None:
        pytest.skip("the functions need a C++ compiler and AVX512 VNNI, and one is missing")
    made: list[weakref.ref] = []

    def mapped(size: int) -> torch.Tensor:
        buffer = mmap.mmap(-1, size)
        made.append(weakref.ref(buffer))
        return torch.frombuffer(buffer, dtype=torch.uint8)

    monkeypatch.setattr(widened, "mapped", mapped)
    return lambda: [buffer for ref in made if (buffer := ref()) is not None]


@torch.no_grad()
def step(packed: PackedModel, names) -> torch.Tensor:
    ids = torch.randint(5, 100, (1, len(names)), generator=torch.Generator().manual_seed(1))
    with packed.tokens(names, names):
        return packed.model(ids).logits


@pytest.mark.parametrize("limit", [None, 2])
def test_codes_stay_while_steps_use_them_and_what_they_take_is_counted(monkeypatch, plain, packs, buffers, limit):
    monkeypatch.setattr(widened, "KEPT_STEPS", 3)
    packed = loaded(plain, packs, limit)
    ready = {name: packed.prepare(name, pack) for name, pack in packs.items()}

    def kept(*names: str) -> bool:
        """Whether the codes of these packs are in memory, and no others, and whether they are counted to the byte."""
        held = sum(map(len, buffers()))
        others = sum(ready[name].nbytes for name in packed.packs)
        others += sum(ready[name].unpacked_nbytes for name in packed.unpacked)
        return held == sum(ready[name].widened_nbytes for name in names) == packed.resident_bytes - others

    assert kept()
    mixed = step(packed, ["a", None, "b", "a", "b"])
    assert kept("a", "b")
    assert packed.pack_bytes("a") == packed.held_bytes("a")
    first = {id(buffer) for buffer in buffers()}
    for _ in range(5):
        step(packed, ["b", "b", "a"])
    assert {id(buffer) for buffer in buffers()} == first  # no step makes them anew

    step(packed, ["b", "b"])
    step(packed, [None, "b"])
    assert kept("a", "b")
    step(packed, [None, None])
    assert kept("b")
    assert torch.equal(step(packed, ["a", None, "b", "a", "b"]), mixed)
    packed.remove("b")
    assert kept("a")
    step(packed, ["c", "d"])
    assert kept(*(["c", "d"] if limit else ["a", "c", "d"]))


@pytest.mark.parametrize("fast", [True, False])
def test_coded_factors_are_laid_out_as_they_were(monkeypatch, fast):
    if not fast:
        monkeypatch.setattr(entropy, "_compiled", lambda: None)
    own = {
        "wide": random_factors(1, 9, 12, 6, largest=127),
        "none": random_factors(2, 9, 12, 0),
        "odd": random_factors(3, 7, 12, 5),
        "mixed": random_factors(4, 8, 12, 9, largest=30),
    }
    own["ones"] = LowRank(own["odd"].A, own["odd"].B, torch.ones(7).half(), own["odd"].B_scale.bfloat16(), None)
    own["mixed"].B[:5].clamp_(-7, 7)
    own["mixed"].A[:, :5].clamp_(-7, 7)
    coded = CodedFactors([Target(name, name, (name,)) for name in own], own.__getitem__, CPU)
    assert coded.widths == dict.fromkeys(own, 12)
    for name, parts in own.items():
        got = coded.laid_out()[name][name]
        assert (got.A_dtype is None) == (name == "ones")
        unpacked, order = got.unpacked(), torch.tensor(_order(parts), dtype=torch.long)
        assert torch.equal(unpacked.A, parts.A.T[order])
        assert torch.equal(unpacked.B, parts.B[order])
        assert torch.equal(unpacked.B_scale, parts.B_scale[order].float())
        assert torch.equal(unpacked.A_scale, parts.A_scale.float() / 127**2)


def _order(parts: LowRank) -> list[int]:
    """The ranks by their largest code, the largest first; ranks with the same one stay in their order."""
    both = [[*parts.A[:, rank].tolist(), *parts.B[rank].tolist()] for rank in range(parts.B.shape[0])]
    return sorted(range(len(both)), key=lambda rank: -max(map(abs, both[rank])))


def test_a_code_that_no_codec_writes_is_refused_when_the_pack_is_loaded(plain, packs):
    pack = copy.deepcopy(packs["c"])
    next(tensor for name, tensor in pack.tensors.items() if name.endswith(".A"))[0, 0] = -128
    packed = PackedModel(copy.deepcopy(plain))
    with pytest.raises(UserError, match="'bad' cannot be loaded: it has a code of -128"):
        packed.prepare("bad", pack)


_MEMORY = """
import ctypes, gc, torch
from helpers.factors import random_factors
from skillweave.weave.coded_factors import CodedFactors, Target

def held():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

parts = random_factors(1, 4000, 4000, 500)
coded = CodedFactors([Target("m", "g", ("m",))], lambda _: parts, torch.device("cpu"))
coded.laid_out()  # what a first call loads and keeps
before = held()
laid = coded.laid_out()
assert held() - before > 0.9 * coded.laid_out_nbytes, held() - before
del laid
assert held() - before < 0.3 * coded.laid_out_nbytes, held() - before
with_codes = held()
size = coded.nbytes
del coded
assert with_codes - held() > 0.9 * size, with_codes - held()
"""


def test_what_is_packed_again_or_unloaded_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=False, cwd="tests")
    assert done.returncode == 0, done.stderr
