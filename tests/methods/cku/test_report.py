"""The report of an unlearning: its figures against direct computations, its probes, and its resumption."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean, harmonic_mean
from types import SimpleNamespace

import pytest
import torch

from helpers.left import record
from helpers.method_driver import stop_at
from helpers.unlearning import model_with, tiny
from skillweave.base import Checkpoint
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.cku.knowledge.facts import fact_rows, read_facts
from skillweave.methods.cku.knowledge.reading import read_rows, truth_ratios
from skillweave.methods.cku.report.config import ReportConfig
from skillweave.methods.cku.report.inputs import ReportModels, read_report_data
from skillweave.methods.cku.report.run import make_report, report_figures
from skillweave.methods.cku.report.stages import refuses
from skillweave.methods.cku.rounding import round_as_stored, round_linears
from skillweave.methods.training import run as shared
from skillweave.skillzip import zipped


def settings(corpus: Path, delta: Path, **changes) -> ReportConfig:
    files = {side: [corpus / f"{side}.jsonl"] for side in ("forget", "retain", "unseen", "lookalike")}
    return ReportConfig(
        **{
            "delta": delta,
            **files,
            "bf16": False,
            "save_every": 2,
            "questions": 4,
            "max_new_tokens": 4,
            "refusals": ("no.",),
            "zip": [1 / 4],
            "group": 32,
            "relearn": {"steps": 4, "learning_rate": 1e-3, "batch_size": 4, "unrelated": 3},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def delta(whole):
    return whole[0] / "delta"


@pytest.fixture(scope="module")
def judgement(base, corpus, delta, tmp_path_factory):
    """The folder and the content of a report whose reference is the unlearnt model itself."""
    out = tmp_path_factory.mktemp("report")
    return out, make_report(
        base, settings(corpus, delta, reference=str(delta)), out, command="cku report", zipper=zipped
    )


@pytest.fixture(scope="module")
def models(base, delta):
    return {"before": model_with(base, None), "after": model_with(base, Delta.from_pretrained(delta))}


def reading(base, model, facts):
    return read_rows(model, fact_rows(base.tokenizer, facts, 256)[0], 0, batch_size=3, bf16=False)


# -- the readings ----------------------------------------------------------------------------------------------------


def test_each_model_is_read_on_each_set(base, corpus, judgement, models):
    arms = judgement[1]["arms"]
    assert list(arms) == ["before", "after", "reference"]
    for arm, model in models.items():
        readings = {
            side: reading(base, model, read_facts([corpus / f"{side}.jsonl"]))
            for side in ("forget", "retain", "unseen", "lookalike")
        }
        for side, found in readings.items():
            assert arms[arm][f"{side}_facts"] == len(read_facts([corpus / f"{side}.jsonl"]))
            for name, value in found.means().items():
                assert arms[arm][f"{side}_{name}"] == pytest.approx(value, abs=1e-4), (arm, side, name)
        for figure, name in (("membership_loss", "per_token"), ("membership_min_k", "min_k")):
            members, strangers = (getattr(readings[side], name) for side in ("forget", "unseen"))
            pairs = [(member, stranger) for member in members for stranger in strangers]
            wins = fmean((ours > other) + 0.5 * (ours == other) for ours, other in pairs)
            assert arms[arm][figure] == pytest.approx(wins, abs=1e-6)
        forget = read_facts([corpus / "forget.jsonl"])
        ratios = truth_ratios(model, base.tokenizer, forget, 256, batch_size=9, bf16=False)
        assert arms[arm]["truth_ratios"] == pytest.approx(ratios, rel=1e-3)
        assert arms[arm]["truth_ratio"] == pytest.approx(fmean(ratios), rel=1e-3)
    assert arms["reference"] == {**arms["after"], "seconds": arms["reference"]["seconds"]}
    assert arms["before"]["membership_loss"] > 0.95 > arms["after"]["membership_loss"]


def test_it_counts_refusals(judgement):
    arms = judgement[1]["arms"]
    assert arms["before"]["forget_refused"] == arms["before"]["retain_refused"] == 0
    assert arms["after"]["forget_refused"] > 0.6
    assert arms["after"]["retain_refused"] < arms["after"]["forget_refused"]


def test_what_a_refusal_is():
    refusals = ("I can't", "I'm sorry")
    assert refuses("  I CAN\u2019T help with that.", refusals)
    assert refuses("i'm sorry, but", refusals)
    assert not refuses("Well, I can't", refusals)
    assert not refuses("", refusals)


def test_what_is_made_of_the_readings(judgement):
    found, arms = judgement[1], judgement[1]["arms"]
    before, after = arms["before"], arms["after"]
    # The reference is the unlearnt model itself: all the way is gone, and nothing tells the two apart.
    assert found["forgotten"] == pytest.approx(1.0)
    assert found["forget_quality"] == pytest.approx(1.0)
    assert found["kept"] == after["retain_probability"] / before["retain_probability"]
    assert found["seconds"] > 0
    assert found["command"] == "cku report"
    json.dumps(found, allow_nan=False)


def test_tasks_are_scored(base, corpus, delta, tmp_path):
    task = tmp_path / "task.jsonl"
    task.write_text((corpus / "retain.jsonl").read_text())
    spec = {"source": "jsonl", "path": task, "splits": {"test": 10, "calibration": 1}}
    config = settings(
        corpus,
        delta,
        tasks=[spec],
        task_limit=4,
        zip=[],
        rounding=[],
        max_new_tokens=10,
        relearn={"steps": 1, "unrelated": 1},
    )
    found = make_report(base, config, tmp_path / "out", command="", zipper=zipped)
    (score,) = found["arms"]["before"]["tasks"].values()
    assert score["n"] == 4
    assert score["low"] <= score["mean"] <= score["high"]
    assert score["mean"] > 0.7  # it was taught just that
    assert found["forget_quality"] is found["robustness"] is None
    assert found["rounding"] == {}


# -- the probes ------------------------------------------------------------------------------------------------------


def test_relearning_is_judged_on_what_was_not_learnt_again(base, corpus, judgement, models):
    found = judgement[1]["relearning"]
    facts = sorted(read_facts([corpus / "forget.jsonl"]), key=lambda fact: fact.id)
    held = facts[7:]
    assert found["forget"]["examples"] == 7
    assert found["unrelated"]["examples"] == 3
    for kind in ("forget", "unrelated"):
        one = found[kind]
        assert one["steps"] == 4
        assert one["known"] == pytest.approx(fmean(reading(base, models["before"], held).strength), abs=1e-5)
        assert one["unlearnt"] == pytest.approx(fmean(reading(base, models["after"], held).strength), abs=1e-5)
        assert one["gap"] == (one["strength"] - one["unlearnt"]) / (one["known"] - one["unlearnt"])
        # Another order of the same examples, for the reference is another stage.
        assert one["reference"] == pytest.approx(one["strength"], abs=0.2)
        gain, others = one["strength"] - one["unlearnt"], one["reference"] - one["unlearnt"]
        assert one["robustness"] == pytest.approx(1.0 if gain <= 0 else max(min(others / gain, 1.0), 0.0))
        stage = read_json(judgement[0] / f"relearn-{kind}" / "figures.json")
        assert stage["loss_last"] < stage["loss_first"]
    assert found["forget"]["strength"] != found["unrelated"]["strength"]


def test_the_parts_of_the_forget_set_are_never_empty(base, corpus, delta, tmp_path):
    asked = read_report_data(settings(corpus, delta))
    for share, size in ((0.5, 7), (0.001, 1), (0.999, 13)):
        part, held = asked.split_forget(share)
        assert (len(part), len(held)) == (size, 14 - size)
        assert {fact.id for fact in (*part, *held)} == {fact.id for fact in asked.forget}
    pair = replace(asked, forget=asked.forget[:2])
    assert [len(part) for part in pair.split_forget(0.9)] == [1, 1]
    one = tmp_path / "one.jsonl"
    one.write_text((corpus / "forget.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match="one fact, but relearning needs two"):
        make_report(base, settings(corpus, delta, forget=[one]), tmp_path / "out", command="", zipper=zipped)


def slowly_rounded(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Every group of weights of a row, one after the other: 4 bits by the best of nine clippings, 8 bits by none."""
    largest, width = {8: 127, 4: 7}[bits], group if weight.shape[1] % group == 0 else weight.shape[1]
    result = torch.empty_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], width):
            part = weight[row, start : start + width]
            best, tried = None, []
            for clipping in [1 - 0.05 * k for k in range(9)] if bits == 4 else [1.0]:
                scale = (part.abs().max() * clipping / largest).half().float()
                codes = (part / scale).round().clamp(-largest, largest) if scale > 0 else torch.zeros_like(part)
                tried.append((float((codes * scale - part).double().square().sum()), codes * scale))
                best = min(tried, key=lambda pair: pair[0])
            result[row, start : start + width] = best[1]
    return result


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt2"])
@pytest.mark.parametrize(("bits", "group"), [(8, 4), (4, 8), (8, 5), (4, 1000)])
def test_rounding_is_that_of_a_slow_quantiser(kind, bits, group):
    model = tiny(kind)
    before = copy.deepcopy(model.state_dict())
    round_linears(model, bits, group)
    changed = set()
    for name, tensor in model.state_dict().items():
        if torch.equal(tensor, before[name]):
            continue
        changed.add(name)
        turned = (lambda weight: weight.T) if kind == "gpt2" else (lambda weight: weight)
        torch.testing.assert_close(turned(tensor), slowly_rounded(turned(before[name]), bits, group), atol=1e-6, rtol=0)
    # Of two layers every matrix, not the embeddings nor the output head.
    in_blocks = {name for name in before if (".layers." in name or ".h." in name) and before[name].dim() == 2}
    assert changed == in_blocks


def test_rounding_brings_back_what_it_brings_back(base, corpus, judgement, models):
    found, arms = judgement[1]["rounding"], judgement[1]["arms"]
    assert list(found) == ["8", "4"]
    for bits in (8, 4):
        one = found[str(bits)]
        for arm, prefix in (("after", ""), ("before", "before_")):
            model = copy.deepcopy(models[arm])
            round_linears(model, bits, 32)
            for side in ("forget", "retain"):
                strength = fmean(reading(base, model, read_facts([corpus / f"{side}.jsonl"])).strength)
                assert one[f"{prefix}{side}_strength"] == pytest.approx(strength, abs=1e-5)
        known, unlearnt = arms["before"]["forget_strength"], arms["after"]["forget_strength"]
        assert one["gap"] == pytest.approx((one["forget_strength"] - unlearnt) / (known - unlearnt))
        assert one["robustness"] == pytest.approx(min(1.0, unlearnt / one["forget_strength"]))
    worst = min(one["robustness"] for one in found.values())
    both = judgement[1]["robustness"]
    assert both == pytest.approx(harmonic_mean([judgement[1]["relearning"]["forget"]["robustness"], worst]))


def test_a_zip_is_read_as_it_would_be_served(judgement):
    (one,) = judgement[1]["zipped"]
    assert one["ratio"] == 0.25
    if "too_small" not in one:
        known, unlearnt = (judgement[1]["arms"][arm]["forget_strength"] for arm in ("before", "after"))
        assert one["gap"] == pytest.approx((one["forget_strength"] - unlearnt) / (known - unlearnt))
        assert one["pack_bytes"] > 0


def test_a_base_of_few_bits_is_read_as_it_is_stored(base, tmp_path):
    stored = model_with(base, None).bfloat16()
    stored.save_pretrained(tmp_path)
    model = model_with(base, None)
    before = copy.deepcopy(model.state_dict())
    round_as_stored(model, Checkpoint(tmp_path))
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name].bfloat16().float())


# -- with less, and again --------------------------------------------------------------------------------------------


def test_what_was_not_given_is_none():
    stages = {
        arm: {"forget_strength": strength, "retain_probability": 0.5}
        for arm, strength in (("before", 0.5), ("after", 0.7))
    }
    for kind in ("forget", "unrelated"):
        stages[f"relearn-{kind}"] = {"known": 0.5, "unlearnt": 0.7, "strength": 0.8, "examples": 1, "steps": 1}
    config = ReportConfig(delta="d", forget="f.jsonl", retain="r.jsonl", rounding=[], zip=[])
    found = report_figures(stages, config)
    assert found["forgotten"] == pytest.approx(-0.4)  # it knows more than before
    assert found["relearning"]["forget"]["gap"] is None  # nothing was lost
    assert found["forget_quality"] is found["robustness"] is found["stored"] is None
    stages["before"]["unseen_strength"] = 0.6  # what was never taught is known as well: there was nothing to forget
    assert report_figures(stages, config)["forgotten"] is None
    stages["after"]["retain_probability"] = math.ulp(0.0)
    assert report_figures(stages, config)["kept"] < 1e-300


def test_a_report_that_was_broken_off_ends_as_the_unbroken_one(base, corpus, delta, judgement, tmp_path):
    config = settings(corpus, delta, reference=str(delta))

    def mark(stage):
        def stop(patch):
            write = shared.write_json

            def writing(path, value):
                if path == tmp_path / stage / "figures.json":
                    raise KeyboardInterrupt
                write(path, value)

            patch.setattr(shared, "write_json", writing)

        return stop

    places = [mark("after"), lambda patch: stop_at(patch, "relearn-forget", 3), mark("reference/relearn-unrelated")]
    for break_off in places:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            break_off(patch)
            make_report(base, config, tmp_path, command="", zipper=zipped)
    make_report(base, config, tmp_path, command="", zipper=zipped)
    assert record(tmp_path) == record(judgement[0])
    left = {path.name for path in tmp_path.rglob("*.safetensors")}
    assert not left
    with pytest.raises(UserError, match="other settings"):
        make_report(base, settings(corpus, delta, reference=str(delta), group=16), tmp_path, command="", zipper=zipped)


def test_another_delta_is_another_report(corpus, delta, tmp_path):
    """Also where it stands in the same place; and a report does not go on with another one than it began with."""
    place, data = tmp_path / "delta", []
    config, first = settings(corpus, place), Delta.from_pretrained(delta)
    for factor in (1.0, 0.5):
        changes = {name: first.tensor(name) * factor for name in first.names()}
        Delta(changes, base_fingerprint=first.base_fingerprint).save_pretrained(place)
        data.append(read_report_data(config))
    assert data[0].key != data[1].key
    began, now = (ReportModels(SimpleNamespace(folder=tmp_path, config=config, data=one)) for one in data)
    assert now.delta(place).names() == first.names()
    with pytest.raises(UserError, match="was replaced while the report was made"):
        began.delta(place)


def test_what_is_no_delta_or_of_another_base_is_refused(base, corpus, delta, tmp_path):
    with pytest.raises(UserError, match="is not a delta folder"):
        make_report(base, settings(corpus, corpus), tmp_path / "a", command="", zipper=zipped)
    other = tmp_path / "other"
    first = Delta.from_pretrained(delta)
    Delta({name: first.tensor(name) for name in first.names()}, base_fingerprint="sha256:0").save_pretrained(other)
    for wrong in ({"delta": other}, {"reference": str(other)}):
        with pytest.raises(UserError, match="the delta belongs on"):
            make_report(
                base, settings(corpus, delta).model_copy(update=wrong), tmp_path / "b", command="", zipper=zipped
            )


def test_a_reference_that_reads_other_tokens_is_refused(base, corpus, delta, tmp_path):
    config = settings(corpus, delta).model_copy(update={"reference": "bundled:smollm2"})
    with pytest.raises(UserError, match="bundled:smollm2 has another vocabulary than the base"):
        make_report(base, config, tmp_path, command="", zipper=zipped)
