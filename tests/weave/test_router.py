from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from skillweave.base import open_base, prompt_ids
from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.weave.router import Router, background_prompts, features, fit_on_features, fit_router

NAMES = ["maths", "calls", "base"]


def clusters(per_class: int, spread: float = 0.3, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(per_class)
    return 3 * torch.eye(3, width)[labels] + spread * torch.randn(len(labels), width, generator=source), labels


def test_separable_prompts_go_home():
    x, labels = clusters(120)
    router = fit_on_features(x, labels, NAMES, layer=1)
    assert router.figures["accuracy"] >= 0.98
    assert router.figures["background_kept"] == 1.0
    assert router.figures["abstained"] <= 0.02
    assert 0 < router.figures["cosine"] < 0.9
    assert router.route(3 * torch.eye(12)[0]).pack == "maths"
    assert router.route(3 * torch.eye(12)[1]).pack == "calls"
    to_base = router.route(3 * torch.eye(12)[2])
    assert to_base.pack is None
    assert to_base.confidence > 0.5
    assert next(iter(to_base.scores)) == "base"
    assert sorted(to_base.scores) == sorted(NAMES)
    assert sum(to_base.scores.values()) == pytest.approx(1.0, abs=1e-5)
    both = router.route(1.5 * torch.eye(12)[0] + 1.5 * torch.eye(12)[1])  # a request for two skills gets one of them
    assert both.pack in ("maths", "calls")
    assert both.confidence < 0.9


def test_prompts_without_a_pattern_are_not_called_known():
    x, labels = clusters(60)
    router = fit_on_features(torch.randn(x.shape, generator=torch.Generator().manual_seed(5)), labels, NAMES, layer=1)
    assert router.figures["accuracy"] < 0.6  # cross-fitted: a fit that judged itself would claim more


def test_part_of_the_way_towards_a_skill_is_enough():
    """Other words take a prompt only part of the way, and add what prompts in general differ by."""
    source = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(60, 60, generator=source))
    axes, factors = axes[:3], 3 * axes[3:11]

    def prompts(count: int) -> torch.Tensor:
        noise = 0.2 * torch.randn(count, 60, generator=source)
        return torch.randn(count, 8, generator=source) @ factors + noise

    everyday, general = prompts(200), prompts(100)
    skills = torch.cat([10 * axes[pack] + 0.3 * torch.randn(40, 60, generator=source) for pack in (0, 1)])
    labels = torch.tensor([0] * 40 + [1] * 40 + [2] * 200)
    router = fit_on_features(torch.cat([skills, everyday]), labels, NAMES, layer=1)
    for pack, name in enumerate(("maths", "calls")):
        assert sum(route.pack == name for route in router.route_all(general + 4 * axes[pack])) >= 95
    for other in (general, general + 4 * axes[2]):  # no skill, and one that is unknown
        assert sum(route.pack is not None for route in router.route_all(other)) <= 5


def test_skills_that_are_alike_raise_what_is_asked_of_a_prompt():
    """A prompt of a skill without a pack must not go to the one that is most like it."""
    source = torch.Generator().manual_seed(0)
    common, own = torch.eye(30)[0], torch.eye(30)[1:]
    noise = 0.2 * torch.randn(200, 30, generator=source)
    labels = torch.tensor([0] * 40 + [1] * 40 + [2] * 120)
    x = noise + torch.where(labels[:, None] < 2, 3 * common + 3 * own[labels], torch.zeros(30))
    router = fit_on_features(x, labels, NAMES, layer=1)
    assert router.figures["accuracy"] == 1
    assert router.route(3 * common + 3 * own[5]).pack is None
    alone = labels != 1
    one = fit_on_features(x[alone], labels[alone].clamp_max(1), ["maths", "base"], layer=1)
    assert one.figures["cosine"] < router.figures["cosine"] - 0.1


def test_a_router_is_read_back_as_it_was_saved(tmp_path):
    x, labels = clusters(20)
    router = fit_on_features(x, labels, NAMES, layer=7)
    read = Router.load(router.save(tmp_path / "router"))
    for name in ("weight", "bias", "mean", "spread", "basis"):
        assert torch.equal(getattr(read, name), getattr(router, name))
    assert (read.classes, read.layer, read.threshold, read.figures) == (NAMES, 7, router.threshold, router.figures)
    assert [route.pack for route in read.route_all(x)] == [route.pack for route in router.route_all(x)]
    assert sorted(p.name for p in (tmp_path / "router").iterdir()) == ["router.json", "router.safetensors"]


def test_a_router_without_a_basis_is_a_logistic_regression_and_stays_of_version_2(tmp_path):
    weight, bias = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0.0, 1.0])
    old = Router(["maths", "base"], weight, bias, torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]), 3, 0.9)
    read = Router.load(old.save(tmp_path / "router"))
    assert json.loads((tmp_path / "router" / "router.json").read_text())["schema_version"] == 2
    assert read.basis is None
    h = torch.tensor([5.0, 7.0])  # (5 - 1) / 2 = 2 for the pack, 1 for the base
    chance = 1 / (1 + math.exp(1 - 2))
    assert read.probabilities(h[None])[0].tolist() == pytest.approx([chance, 1 - chance])
    assert read.route(h).pack is None  # below the threshold
    assert read.route(h + 6).pack == "maths"


def test_damaged_routers_are_named(tmp_path):
    x, labels = clusters(5)
    folder = fit_on_features(x, labels, NAMES, layer=1).save(tmp_path / "router")
    good = json.loads((folder / "router.json").read_text())
    (folder / "router.json").write_text(json.dumps({**good, "schema_version": 99}))
    with pytest.raises(UserError, match="schema version 99"):
        Router.load(folder)
    (folder / "router.json").write_text(json.dumps({**good, "classes": ["one", "base"]}))
    with pytest.raises(UserError, match=r"'weight' is float32 \(3, 12\); expected float32 \(2, 12\)"):
        Router.load(folder)
    (folder / "router.json").write_text(json.dumps(good))
    (folder / "router.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match="damaged"):
        Router.load(folder)
    (folder / "router.safetensors").unlink()
    with pytest.raises(UserError, match="incomplete"):
        Router.load(folder)


def named(folder: Path) -> Path:
    """The router's folder, after its author wrote the hash of the tensors into the card."""
    card = json.loads((folder / "router.json").read_text())
    card["files"] = {"router.safetensors": sha256_file(folder / "router.safetensors")}
    (folder / "router.json").write_text(json.dumps(card))
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    x, labels = clusters(5)
    return fit_on_features(x, labels, NAMES, layer=1).save(tmp_path / "router")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": ["maths", "calls"]}, "'base' last"),
        ({"classes": ["base", "maths", "calls"]}, "'base' last"),
        ({"classes": ["maths", "Maths", "base"]}, "each once"),
        ({"classes": ["maths", "auto", "base"]}, "stands for the router's choice"),
        ({"classes": ["maths", "../x", "base"]}, "cannot name a pack"),
        ({"classes": ["maths", "\x1b[2J", "base"]}, "cannot name a pack"),
        ({"classes": []}, "classes"),
        ({"classes": "base"}, "classes"),
        ({"layer": -1}, "layer"),
        ({"layer": True}, "layer"),
        ({"layer": 1.0}, "layer"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": float("nan")}, "(threshold|nan)"),
        ({"threshold": "0.5"}, "threshold"),
        ({"figures": {"accuracy": float("inf")}}, "inf"),
        ({"figures": [1]}, "figures"),
        ({"surprise": 1}, "surprise"),
        ({"schema_version": None}, "schema_version is None"),
        ({"files": {}}, "expected the hash of router.safetensors alone"),
        ({"files": {"../router.safetensors": "0" * 64}}, "not a plain file name"),
        ({"files": {"router.safetensors": "0" * 64}}, "is damaged"),
    ],
)
def test_cards_of_routers_are_refused_by_key(saved: Path, values: dict, message: str) -> None:
    card = json.loads((saved / "router.json").read_text())
    (saved / "router.json").write_text(json.dumps({**card, **values}))
    with pytest.raises(UserError, match=rf"(?si)router\.(json|safetensors).*{message}"):
        Router.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["weight"].__setitem__((0, 0), float("nan")), "'weight' holds NaN"),
        (lambda t: t["bias"].fill_(float("inf")), "'bias' holds NaN or infinity"),
        (lambda t: t["spread"].__setitem__(3, 0.0), "'spread' holds 0; expected more than 1e-06"),
        (lambda t: t["spread"].neg_(), "'spread' holds -"),
        (lambda t: t.update(mean=torch.zeros(11)), "expected float32"),
        (lambda t: t.update(mean=torch.zeros(())), "expected float32"),
        (lambda t: t.update(bias=torch.zeros(3, dtype=torch.float64)), "'bias' is float64"),
        (lambda t: t.update(weight=torch.zeros(3, 12, 1)), "'weight' is float32"),
        (lambda t: t.update(more=torch.zeros(1)), "'more' is one that no router of version . has"),
        (lambda t: t.pop("mean"), "'mean' is missing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", [1, 2, 3])
def test_tensors_of_routers_are_refused_by_name(saved: Path, change, message: str, version: int) -> None:
    tensors = load_file(saved / "router.safetensors")
    if version < 3:
        del tensors["basis"]
    change(tensors)
    save_file(tensors, saved / "router.safetensors")
    card = json.loads((named(saved) / "router.json").read_text())
    if version == 1:
        del card["files"]
    (saved / "router.json").write_text(json.dumps({**card, "schema_version": version}))
    with pytest.raises(UserError, match=message):
        Router.load(saved)


@pytest.mark.parametrize(
    ("version", "basis", "message"),
    [
        (3, torch.zeros(2, 11), r"'basis' is float32 \(2, 11\); expected float32 \(2, 12\)"),
        (3, torch.zeros(()), "'basis' is float32"),
        (3, torch.full((2, 12), float("nan")), "'basis' holds NaN"),
        (3, None, "'basis' is missing"),
        (2, torch.zeros(2, 12), "'basis' is one that no router of version 2 has"),
    ],
)
def test_the_basis_of_a_router_is_checked(saved: Path, version: int, basis: torch.Tensor | None, message: str) -> None:
    tensors = load_file(saved / "router.safetensors")
    del tensors["basis"]
    save_file({**tensors, **({} if basis is None else {"basis": basis})}, saved / "router.safetensors")
    card = json.loads((named(saved) / "router.json").read_text())
    (saved / "router.json").write_text(json.dumps({**card, "schema_version": version}))
    with pytest.raises(UserError, match=message):
        Router.load(saved)


def test_probabilities_that_are_no_numbers_are_told(saved: Path) -> None:
    router = Router.load(saved)
    with pytest.raises(UserError, match="probabilities are not numbers"):
        router.route(torch.full((12,), float("nan")))
    router.weight.fill_(3e38)
    with pytest.raises(UserError, match="probabilities are not numbers"):
        router.route(torch.arange(12).float())


def test_one_pack_only_and_identical_prompts():
    x, labels = clusters(40)
    two = labels != 1
    router = fit_on_features(x[two], (labels[two] > 0).long(), ["maths", "base"], layer=1)
    assert router.weight.shape == (2, 12)
    assert router.route(x[0]).pack == "maths"
    assert router.route(x[-1]).pack is None
    same = fit_on_features(torch.ones(8, 4), torch.tensor([0] * 4 + [1] * 4), ["maths", "base"], layer=1)
    assert torch.isfinite(same.probabilities(torch.ones(1, 4))).all()


@pytest.fixture(scope="module")
def base(micro_base):
    return open_base(micro_base)


def test_features_are_the_mean_of_the_tokens_after_the_first(base):
    prompts = ["short", "a much longer prompt, so that the first is padded", "middling one"]
    got = features(base, prompts, 1, batch_size=2)
    for prompt, row in zip(prompts, got, strict=True):
        ids = torch.tensor([prompt_ids(base.tokenizer, prompt)])
        with torch.no_grad():
            states = base.model(ids, output_hidden_states=True).hidden_states[1][0]
        torch.testing.assert_close(row, states[1:].mean(0), rtol=1e-4, atol=1e-5)


def test_fit_router_on_a_model(base):
    sums = [f"{a}+{b}=" for a in range(10, 20) for b in range(3)]
    calls = [f"CALL {letter * 3}({letter})" for letter in "abcdefghijklmnopqrstuvwxyz"]
    router = fit_router(base, {"sums": sums, "calls": calls})
    assert router.classes == ["sums", "calls", "base"]
    assert router.layer == 1
    assert router.figures["accuracy"] > 0.9
    assert router.figures["background_kept"] > 0.9
    assert router.route(features(base, ["17+9="], router.layer)[0]).pack == "sums"


def test_too_few_prompts_are_refused_by_name(base):
    with pytest.raises(UserError, match="'sums' has 0 prompts"):
        fit_router(base, {"sums": []})
    with pytest.raises(UserError, match="background has 1 prompts"):
        fit_router(base, {"sums": ["1+1", "2+2"]}, ["hello"])
    with pytest.raises(UserError, match="at least one pack"):
        fit_router(base, {})
    with pytest.raises(UserError, match="cannot be called 'base'"):
        fit_router(base, {"base": ["a", "b"]})


def test_the_background_is_varied_and_short():
    prompts = background_prompts()
    assert len(prompts) >= 150
    assert len(set(prompts)) == len(prompts)
    assert max(map(len, prompts)) < 250
    assert sum("\n" in prompt for prompt in prompts) >= 15
    assert not any("\\n" in prompt for prompt in prompts)
