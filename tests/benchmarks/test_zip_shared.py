"""The benchmark of a shared part: its merges against slow loops, its basis, its figures, and a quick run."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

from helpers.micro import save_micro
from skillweave.base import open_base

merge = importlib.import_module("benchmarks.zip_shared.merge")
squeeze = importlib.import_module("benchmarks.zip_shared.squeeze")
show = importlib.import_module("benchmarks.zip_shared.show")
measure = importlib.import_module("benchmarks.zip_shared.measure")
groups = importlib.import_module("benchmarks.zip_shared.groups")
benchmark = importlib.import_module("benchmarks.zip_shared.__main__")


def random_deltas(packs: int) -> list[dict[str, torch.Tensor]]:
    source = torch.Generator().manual_seed(3)
    shapes = {"a": (3, 4), "b": (5,)}
    return [{name: torch.randn(shape, generator=source) for name, shape in shapes.items()} for _ in range(packs)]


def flat(tensors: dict[str, torch.Tensor]) -> list[float]:
    return [value for tensor in tensors.values() for value in tensor.flatten().tolist()]


def slow_ties(deltas: list[list[float]], keep: float) -> list[float]:
    """Algorithm 1 of arXiv 2306.01708, number by number."""
    trimmed = []
    for delta in deltas:
        kept = sorted(range(len(delta)), key=lambda at: -abs(delta[at]))[: round(keep * len(delta))]
        trimmed.append([value if at in kept else 0.0 for at, value in enumerate(delta)])
    merged = []
    for column in zip(*trimmed, strict=True):
        positive = sum(value for value in column if value > 0)
        negative = -sum(value for value in column if value < 0)
        elected = 1 if positive > negative else -1
        agreeing = [value for value in column if value * elected > 0]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


@pytest.mark.parametrize("packs", [1, 2, 5])
@pytest.mark.parametrize("keep", [0.1, 0.2, 0.5, 1.0])
def test_ties_is_the_algorithm_of_the_paper(packs: int, keep: float) -> None:
    deltas = random_deltas(packs)
    assert flat(merge.ties(deltas, keep)) == pytest.approx(slow_ties([flat(delta) for delta in deltas], keep), abs=1e-6)


def test_ties_of_zeros_and_of_opposites_is_zero() -> None:
    zeros = {"a": torch.zeros(4)}
    assert not merge.ties([zeros, zeros])["a"].any()
    delta = {"a": torch.tensor([1.0, -2.0])}
    assert not merge.ties([delta, {"a": -delta["a"]}], keep=1.0)["a"].any()


def test_mean_and_task_arithmetic() -> None:
    deltas = random_deltas(3)
    columns = list(zip(*map(flat, deltas), strict=True))
    assert flat(merge.mean(deltas)) == pytest.approx([sum(column) / 3 for column in columns], abs=1e-6)
    assert flat(merge.task_arithmetic(deltas, 0.3)) == pytest.approx([0.3 * sum(c) for c in columns], abs=1e-6)
    # No other multiple of the sum leaves smaller residuals.
    far = {
        factor: sum(merge.norm(merge.minus(delta, merge.task_arithmetic(deltas, factor))) ** 2 for delta in deltas)
        for factor in (0.0, 0.3, 1 / 3, 0.4, 1.0)
    }
    assert min(far, key=lambda factor: far[factor]) == 1 / 3


def test_norm_and_cosine() -> None:
    one, other = random_deltas(2)
    a, b = flat(one), flat(other)
    assert merge.norm(one) == pytest.approx(math.hypot(*a))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    assert merge.cosine(one, other) == pytest.approx(dot / math.hypot(*a) / math.hypot(*b))
    assert merge.cosine(one, one) == pytest.approx(1)


def test_packs_of_equal_deltas_share_a_basis(tmp_path: Path) -> None:
    base = open_base(save_micro(tmp_path / "micro", hidden=64), dtype="float32")
    names = [name for name, weight in base.model.named_parameters() if ".layers.0.mlp" in name and weight.dim() == 2]
    source = torch.Generator().manual_seed(0)
    shapes = {name: base.model.get_parameter(name).shape for name in names}
    delta = {name: 0.01 * torch.randn(shape, generator=source) for name, shape in shapes.items()}
    alone = squeeze.Squeezed(delta, base).at(0.25)
    packs = squeeze.SharedBasis([delta, delta, delta], base).at(0.25, alone.card)
    errors = [merge.norm(merge.minus(delta, pack.tensors)) / merge.norm(delta) for pack in (alone, *packs)]
    # B is paid once for three packs: at equal bytes each of them keeps more.
    assert max(errors[1:]) < errors[0] < 1
    assert all(0 < pack.nbytes <= 0.25 * 2 * sum(map(torch.numel, delta.values())) for pack in (alone, *packs))
    assert squeeze.Squeezed(delta, base).at(1e-4) is None
    assert squeeze.SharedBasis([delta, delta], base).at(1e-4, alone.card) is None

    before = {name: base.model.get_parameter(name).detach().clone() for name in names}
    with squeeze.moved(base, delta, None, alone.tensors):
        for name in names:
            assert torch.equal(base.model.get_parameter(name), before[name] + delta[name] + alone.tensors[name])
    assert all(torch.equal(base.model.get_parameter(name), before[name]) for name in names)


def test_gained_is_the_mean_ratio_of_each_seed() -> None:
    def row(arm: str, seed: int, skill: str, kl: float) -> dict:
        return {"relation": "r", "packs": 2, "seed": seed, "arm": arm, "ratio": "1/32", "skill": skill, "kl": kl}

    kls = {("x", 0): (4.0, 2.0), ("y", 0): (8.0, 1.0), ("x", 1): (3.0, 1.0), ("y", 1): (3.0, 1.0)}
    rows = [
        row(arm, seed, skill, pair[at])
        for (skill, seed), pair in kls.items()
        for at, arm in enumerate((measure.NONE, measure.MEAN))
    ]
    gain, low, high = show.gained(rows, ("r", 2), measure.MEAN, "1/32")
    assert gain == pytest.approx(math.sqrt(4.0 * 3.0))  # seed 0: sqrt(2 x 8); seed 1: 3
    assert low < 3 < 4 < high
    one_seed = [each for each in rows if each["seed"] == 0]
    assert show.gained(one_seed, ("r", 2), measure.MEAN, "1/32") == pytest.approx((4.0, 2.0, 8.0))
    assert show.gained(rows, ("r", 2), measure.TIES, "1/32") is None


def test_worth_is_the_bytes_that_the_same_closeness_takes_without_a_shared_part() -> None:
    def row(arm: str, ratio: str, nbytes: int, kl: float) -> dict:
        about = {"relation": "r", "packs": 2, "seed": 0, "skill": "x"}
        return {**about, "arm": arm, "ratio": ratio, "pack_bytes": nbytes, "kl": kl}

    rows = [row(measure.NONE, "no pack", 0, 9.0)]
    rows += [row(measure.NONE, ratio, nbytes, 100 / nbytes) for ratio, nbytes in (("1/32", 100), ("1/128", 25))]
    rows += [row(measure.MEAN, "1/128", 25, 2.0), row(measure.TIES, "1/128", 25, 0.5)]
    assert show.worth(rows, ("r", 2), measure.MEAN, "1/128") == pytest.approx(2)  # 50 bytes give a KL of 2
    assert show.worth(rows, ("r", 2), measure.TIES, "1/128") is None
    assert show.worth(rows, ("r", 2), measure.MEAN, "1/32") is None


def test_micro_skills_differ_as_their_relation_says() -> None:
    for relation, packs, tasks in ((groups.TASKS, 3, 3), (groups.SETTINGS, 8, 1), (groups.SAME, 8, 1)):
        skills = groups.micro_skills(relation, packs, 0)
        assert len({repr(skill) for skill in skills}) == packs
        assert len({skill.task for skill in skills}) == tasks
    first, later = (groups.micro_skills(groups.SAME, 8, seed) for seed in (0, 1))
    assert not {skill.data_seed for skill in first} & {skill.data_seed for skill in later}


def test_zip_shared(tmp_path: Path) -> None:
    benchmark.main(["--quick", "--arms", "none", "mean", "shared basis", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "zip_shared-quick.json").read_text())
    rows = {(row["arm"], row["ratio"], row["skill"]): row for row in found["rows"]}
    skills = {row["skill"] for row in found["rows"]}
    assert len(skills) == 3
    for skill in skills:
        plain, pack = rows["none", "no pack", skill], rows["none", "1/32", skill]
        assert (plain["residual"], plain["weight_error"], plain["everyday_kl"]) == (1, 1, 0)
        assert 0 < pack["kl"] < plain["kl"]
        assert rows["mean", "no pack", skill]["residual"] < 1
        assert rows["mean", "no pack", skill]["everyday_kl"] > 0
        for arm in ("none", "mean", "shared basis"):
            assert 0 < rows[arm, "1/32", skill]["pack_bytes"] <= rows[arm, "1/32", skill]["delta_bytes"] / 32
    kinds = {"free": "a free shared part (the best: mean)", "paid": "a shared part whose bytes count"}
    assert [any(kind in claim["claim"] for claim in found["claims"]) for kind in kinds.values()] == [True, True]
