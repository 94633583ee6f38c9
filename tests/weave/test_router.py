from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from skillweave.base import open_base, prompt_ids
from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.weave.router import Router, _threshold, background_prompts, features, fit_on_features, fit_router

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
    assert router.threshold > 0
    assert router.route(3 * torch.eye(12)[0]).pack == "maths"
    assert router.route(3 * torch.eye(12)[1]).pack == "calls"
    to_base = router.route(3 * torch.eye(12)[2])
    assert to_base.pack is None
    assert to_base.confidence > 0.5
    assert next(iter(to_base.scores)) == "base"
    assert sorted(to_base.scores) == sorted(NAMES)
    assert sum(to_base.scores.values()) == pytest.approx(1.0, abs=1e-5)
    # Between two packs neither is likely enough.
    assert router.route(1.5 * torch.eye(12)[0] + 1.5 * torch.eye(12)[1]).pack is None


def test_prompts_without_a_pattern_are_not_called_known():
    x, labels = clusters(60)
    router = fit_on_features(torch.randn(x.shape, generator=torch.Generator().manual_seed(5)), labels, NAMES, layer=1)
    assert router.figures["accuracy"] < 0.6  # cross-fitted: a fit that judged itself would claim more


def test_the_threshold_lets_the_asked_share_fall():
    confidence = torch.linspace(0.5, 0.99, 200)[torch.randperm(200)]
    unseen = torch.stack([confidence, 1 - confidence], dim=1)
    labels = torch.zeros(200, dtype=torch.long)
    cut = _threshold(unseen, labels, 0.01)
    assert (confidence < cut).sum() == 1
    assert (confidence < _threshold(unseen, labels, 0.1)).sum() == 19
    assert _threshold(unseen[:50], labels[:50], 0.01) == 0.0  # 50 prompts cannot tell what 1% is
    assert _threshold(unseen, labels + 1, 0.01) == 0.0  # no prompts of packs at all


def test_a_router_is_read_back_as_it_was_saved(tmp_path):
    x, labels = clusters(20)
    router = fit_on_features(x, labels, NAMES, layer=7)
    read = Router.load(router.save(tmp_path / "router"))
    for name in ("weight", "bias", "mean", "spread"):
        assert torch.equal(getattr(read, name), getattr(router, name))
    assert (read.classes, read.layer, read.threshold, read.figures) == (NAMES, 7, router.threshold, router.figures)
    assert [route.pack for route in read.route_all(x)] == [route.pack for route in router.route_all(x)]
    assert sorted(p.name for p in (tmp_path / "router").iterdir()) == ["router.json", "router.safetensors"]


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
        (lambda t: t.update(more=torch.zeros(1)), "'more' is one that no router has"),
        (lambda t: t.pop("mean"), "'mean' is missing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", [1, 2])
def test_tensors_of_routers_are_refused_by_name(saved: Path, change, message: str, version: int) -> None:
    tensors = load_file(saved / "router.safetensors")
    change(tensors)
    save_file(tensors, saved / "router.safetensors")
    card = json.loads((named(saved) / "router.json").read_text())
    if version == 1:
        del card["files"]
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
    assert max(map(len, prompts)) < 150
