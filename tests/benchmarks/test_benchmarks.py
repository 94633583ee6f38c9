"""The benchmarks, each run with ``--quick`` on a micro base, and the figures they make of what they measure."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from helpers.micro import micro_model, save_micro
from skillweave.errors import UserError
from skillweave.methods.e3tir import E3tirConfig
from skillweave.tasks.expert_traces import read_traces, scripted_traces
from skillweave.tasks.with_tools import load_agent

record = importlib.import_module("benchmarks.common.record")
skills = importlib.import_module("benchmarks.common.skills")
int8_backbone = importlib.import_module("benchmarks.int8_backbone")
int8_refine = importlib.import_module("benchmarks.int8_refine")
mixed_batch = importlib.import_module("benchmarks.mixed_batch")
prefix_kept = importlib.import_module("benchmarks.prefix.kept")
prefix_time = importlib.import_module("benchmarks.prefix.time")
memory = importlib.import_module("benchmarks.memory")
zip_memory = importlib.import_module("benchmarks.zip_memory")
zip_kernel = importlib.import_module("benchmarks.zip_kernel")
architectures = importlib.import_module("benchmarks.architectures")
serving_show = importlib.import_module("benchmarks.serving.show")
zip_speed = importlib.import_module("benchmarks.zip_speed.__main__")
zip_speed_models = importlib.import_module("benchmarks.zip_speed.models")
zip_codecs = importlib.import_module("benchmarks.zip")
zip_quality = importlib.import_module("benchmarks.zip_quality.__main__")
quality_codecs = importlib.import_module("benchmarks.zip_quality.codecs")
quality_show = importlib.import_module("benchmarks.zip_quality.show")
tpaw = importlib.import_module("benchmarks.tpaw.__main__")
converged = importlib.import_module("benchmarks.tpaw.converged")
cku = importlib.import_module("benchmarks.cku.__main__")
e3tir = importlib.import_module("benchmarks.e3tir.__main__")
agents = importlib.import_module("benchmarks.e3tir.arms")
agents_show = importlib.import_module("benchmarks.e3tir.show")
rollouts = importlib.import_module("benchmarks.rollouts")
unlearning = importlib.import_module("benchmarks.cku.arms")
lasting = importlib.import_module("benchmarks.cku.robust")
selfplay = importlib.import_module("benchmarks.tpaw.arms")
runs = importlib.import_module("benchmarks.common.runs")
fuzz = importlib.import_module("benchmarks.fuzz")


@pytest.fixture(scope="module", autouse=True)
def quick_base(tmp_path_factory: pytest.TempPathFactory):
    """A micro base in place of SmolLM2, wide enough for packs of 1/32 and long enough for the tasks' prompts."""
    folder = save_micro(tmp_path_factory.mktemp("base") / "micro", hidden=256, context=1024)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skills, "QUICK_BASE", str(folder))
        yield folder


def test_a_result_names_the_command_that_measured_it():
    options = record.arguments("", ["small"]).parse_args([])
    begun = record.Record.begin("zip.long", options, ["--seeds", "2", "--show"], range(2), module="zip")
    assert begun.command == "python -m benchmarks.zip --seeds 2"


def result(module: ModuleType, folder: Path, *more: str) -> dict:
    """What a quick run writes where ``--out`` says."""
    module.main(["--quick", "--out", str(folder), *more])
    stem = f"{module.NAME}-quick"
    assert "<svg" in (folder / f"{stem}.svg").read_text()
    found = json.loads((folder / f"{stem}.json").read_text())
    text = (folder / f"{stem}.md").read_text()
    assert found["command"] in text
    assert f"({stem}.svg)" in text
    for claim in found["claims"]:
        assert claim["claim"] in text
        low, value, high = claim["low"], claim["value"], claim["high"]
        assert low is None or low <= value  # None: the interval is open
        assert high is None or value <= high
    assert {"name", "scale", "machine", "versions", "seeds", "seconds", "rows"} <= found.keys()
    return found


# -- each script -----------------------------------------------------------------------------------------------------


def test_mixed_batch(tmp_path: Path) -> None:
    found = result(mixed_batch, tmp_path)
    assert [row["way"] for row in found["rows"]] == ["base alone", "weave, mixed", "specialists in turn"]
    assert {row["new_tokens"] for row in found["rows"]} == {24}  # all ways: 12 prompts, 2 tokens each
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in found["rows"])
    (claim,) = found["claims"]
    taken = {row["way"]: np.array(row["seconds"]) for row in found["rows"]}
    ratio = np.median(taken["specialists in turn"] / taken["weave, mixed"])
    assert claim["value"] == pytest.approx(ratio, rel=0.05)  # the rows are rounded to 0.1 ms


def test_prefix_kept(tmp_path: Path) -> None:
    found = result(prefix_kept, tmp_path)
    assert [(row["pack"], row["prefill"]) for row in found["rows"]] == [("base", "pack"), *prefix_kept.ARMS]
    assert all(len(row["each"]) == 2 for row in found["rows"])
    record = found["rows"][-1]["measured"]["prefill"]
    assert record["held_out"] == 2
    assert record["kept"] == (found["rows"][-1]["marked"] == "backbone")
    assert [claim["value"] for claim in found["claims"]] == [0, 0]  # nothing was gained


def test_prefix_time(tmp_path: Path) -> None:
    found = result(prefix_time, tmp_path)
    seconds = {(row["prefill"], row["manner"]): np.array(row["seconds"]) for row in found["rows"]}
    assert {one.shape for one in seconds.values()} == {(2, 2)}
    assert min(one.min() for one in seconds.values()) > 0
    ratio = np.median(seconds["pack", "at once"].mean(axis=1) / seconds["backbone", "at once"].mean(axis=1))
    assert found["claims"][-1]["value"] == pytest.approx(ratio, rel=0.05)  # the rows are rounded to 0.1 ms
    assert [claim["goal"] for claim in found["claims"]] == [">= 5"] * 3


def test_int8_refine(tmp_path: Path) -> None:
    found = result(int8_refine, tmp_path, "--seeds", "0")
    assert [row["arm"] for row in found["rows"]] == list(int8_refine.ARMS)
    kl = {row["arm"]: np.mean(row["kl_int8"]) for row in found["rows"]}
    assert found["claims"][0]["value"] == pytest.approx(kl[int8_refine.ON_INT8] / kl[int8_refine.ON_FLOATS])
    assert all(len(row["score_int8"]) == 4 for row in found["rows"])


def test_int8_backbone(tmp_path: Path) -> None:
    found = result(int8_backbone, tmp_path)
    losses = {row["what"]: row["kl_thousandths"] for row in found["rows"] if "kl_thousandths" in row}
    assert len(losses) == 7
    assert all(value > 0 for value in losses.values())
    assert found["claims"][0]["value"] == pytest.approx(
        losses[int8_backbone.CHOSEN] / losses[int8_backbone.PLAIN], rel=0.1
    )
    assert [row["what"] for row in found["rows"][7:]] == [f"one layer, {rows} rows" for rows in int8_backbone.ROWS]


def test_fuzz(tmp_path: Path) -> None:
    found = result(fuzz, tmp_path, "--kind", "rows.csv", "--kind", "delta", "--mutations", "5")
    assert [(row["kind"], row["mutations"]) for row in found["rows"][:2]] == [("delta", 5), ("rows.csv", 5)]
    assert all("(of 10)" in claim["claim"] for claim in found["claims"])
    with pytest.raises(UserError, match="no such kind; known: delta, pack"):
        fuzz.main(["--quick", "--kind", "rows"])


def test_zip(tmp_path: Path) -> None:
    found = result(zip_codecs, tmp_path)
    rows = {row["codec"]: row for row in found["rows"]}
    base, ours, peer = rows["no pack (the base)"], rows["skillzip int4"], rows["svd bf16"]
    # A pack is nearer to the specialist than no pack at all, and within its bytes.
    assert 0 < ours["kl"] < base["kl"]
    assert 0 < ours["weight_error"] < 1 == base["weight_error"]
    for row in (ours, peer):
        assert 0 < row["pack_bytes"] <= row["delta_bytes"] / 32
        assert row["kl"] == pytest.approx(np.mean(row["kl_of_prompts"]), rel=1e-4)
        assert 0 <= row["score"]["mean"] <= 1
    assert found["claims"][0]["value"] == pytest.approx(peer["kl"] / ours["kl"])
    assert [claim["goal"] for claim in found["claims"]] == ["> 1", "<= 1"]


def test_zip_quality(tmp_path: Path) -> None:
    found = result(zip_quality, tmp_path)
    rows = {row["codec"]: row for row in found["rows"]}
    base, ours, plain, peer = (
        rows[name] for name in ("no pack (the base)", "skillzip", "skillzip, not refined", "svd")
    )
    # Refinement brings a pack of the same bytes nearer to the specialist; each is nearer than the base.
    assert 0 < ours["kl"] < plain["kl"] < base["kl"]
    assert all(0 < row["pack_bytes"] <= row["delta_bytes"] / 16 for row in (ours, plain, peer))
    # A codec of one size is shown at that size, under no ratio.
    assert (rows["bitdelta"]["ratio"], rows["bitdelta"]["smallest"]) == ("smallest", True)
    assert rows["the delta itself"]["kl"] == 0
    assert [claim["goal"] for claim in found["claims"]] == ["> 1", "<= 1"]
    assert found["claims"][0]["value"] == pytest.approx(peer["kl"] / ours["kl"], rel=1e-3)


def test_zip_quality_cells_that_say_most_come_first() -> None:
    options = zip_quality._options([])
    cells = zip_quality.cells("small", options)
    assert len(set(cells)) == len(cells)
    kinds = [(cell.measure, cell.seed) for cell in cells if cell.codec == "skillzip" and cell.skill == "json_calls"]
    seeds = range(len(options.seeds))
    assert list(dict.fromkeys(kinds)) == [("kl", 0), ("score", 0), *(("kl", s) for s in seeds[1:])] + [
        ("score", s) for s in seeds[1:]
    ]
    assert {(cell.skill, cell.length) for cell in cells[:6]} == {
        (skill, length) for skill in ("json_calls", "reverse_words", "sort_numbers") for length in ("short", "long")
    }
    assert not [
        cell for cell in zip_quality.cells("small", zip_quality._options(["--kl-only"])) if cell.measure == "score"
    ]


def test_equal_ranks_are_the_largest_that_fit() -> None:
    matrices = [
        quality_codecs.Matrix(torch.ones(6), rank_bytes=10, fixed_bytes=5, step=2),
        quality_codecs.Matrix(torch.ones(3), rank_bytes=4, fixed_bytes=5, step=1),
    ]
    for budget, ranks in ((9, [0, 1]), (38, [2, 2]), (41, [2, 2]), (62, [4, 3]), (10_000, [6, 3])):
        assert quality_codecs.equal_ranks(matrices, [1.0, 1.0], budget) == ranks


def test_zip_quality_joins_the_measures_of_a_pack() -> None:
    common = {"skill": "a", "length": "short", "seed": 0, "seconds": 1.0, "smallest": False, "pack_bytes": 9}

    def cell(codec: str, ratio: str, measure: str, figures: list[float], **more: object) -> dict:
        return {**common, "codec": codec, "ratio": ratio, "measure": measure, f"{measure}_of_prompts": figures, **more}

    rows = quality_show.joined(
        [
            cell("no pack (the base)", "", "score", [0.0, 0.0, 0.0, 1.0]),
            cell("the delta itself", "", "score", [1.0, 1.0, 1.0, 1.0]),
            cell("svd", "1/16", "score", [1.0, 1.0, 0.0, 1.0]),
            cell("svd", "1/16", "kl", [0.1, 0.3, 0.2, 0.2]),
            cell("svd", "1/512", "kl", [0.5], smallest=True),
            cell("svd", "1/1024", "kl", [0.5], smallest=True),
        ]
    )
    (pack,) = (row for row in rows if row["ratio"] == "1/16")
    assert (pack["kl"], pack["score"], pack["seconds"]) == (0.2, 0.75, 2.0)
    assert pack["retained"] == pytest.approx(2 / 3)
    assert [row["ratio"] for row in rows if row["codec"] == "svd"] == ["1/16", "smallest"]


def test_architectures(tmp_path: Path) -> None:
    found = result(architectures, tmp_path)
    assert [row["family"] for row in found["rows"]] == list(architectures.QUICK)
    assert all(row["passed"] and row["left_out"] == 0 for row in found["rows"])
    assert found["claims"][0]["holds"]


def test_memory_of_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weave = skills.make_up(tmp_path / "weave")
    tensors = {way: memory.measured(way, weave)["tensors"] for way in memory.WAYS}
    assert tensors["imports"] == 0
    assert tensors["base"] < tensors["weave"] < 1.25 * tensors["base"]
    assert tensors["separate"] == 3 * tensors["base"]
    # One way in a process of its own, as the benchmark measures all of them.
    monkeypatch.setattr(memory, "WAYS", {"base": "base alone"})
    (reading,) = memory.take_turns(weave, 1)["base"]
    assert reading["tensors"] == tensors["base"]
    for stage in ("loaded", "answered"):
        assert reading[stage]["rss"] == pytest.approx(reading[stage]["anon"] + reading[stage]["file"], rel=0.01)
        assert 100e6 < reading[stage]["rss"] < 5e9


def test_resident_memory_sees_what_is_held() -> None:
    # In a fresh process: this one holds memory that other tests freed, and the system may take pages of files from it.
    code = """
from benchmarks.memory import resident
import torch
before = resident()["rss"]
held = torch.ones(50_000_000, dtype=torch.uint8)
print(resident()["rss"] - before)
del held
print(resident()["rss"] - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    holding, freed = map(int, done.stdout.split())
    assert holding == pytest.approx(50e6, abs=2e6)
    assert freed < 2e6


def test_zip_speed(tmp_path: Path) -> None:
    found = result(zip_speed, tmp_path, "--stages", "decode", "prompt")
    timed = [row for row in found["rows"] if row["what"] in ("decode", "prompt")]
    ways = [f"{way}, {kind}" for kind in ("bfloat16", "float32", "int8") for way in ("base", "packs")]
    ways += ["PEFT, bfloat16", "PEFT, float32", "in turn"]
    assert [row["way"] for row in timed] == ways * 6  # two stages, three sizes
    assert all(len(row["ms"]) == 2 and min(row["ms"]) > 0 for row in timed)
    eight = {row["way"]: np.array(row["ms"]) for row in timed if (row["what"], row["packs"]) == ("decode", 8)}
    bare = min(("float32", "bfloat16"), key=lambda dtype: np.median(eight[f"base, {dtype}"]))
    ratio = np.median(eight["packs, int8"] / eight[f"base, {bare}"])
    assert found["claims"][0]["value"] == pytest.approx(ratio, rel=0.01)  # the rows are rounded


def test_packs_of_zip_speed_differ_and_give_peft_the_same_ranks(tmp_path: Path) -> None:
    zip_speed_models.write_micro(tmp_path / zip_speed_models.MICRO)
    pack = zip_speed_models.made_up_pack(zip_speed_models.base_ref(tmp_path), 8)
    weave = zip_speed_models.with_packs(zip_speed_models.open_base(zip_speed_models.base_ref(tmp_path)), pack, 3)
    ids = torch.randint(5, 60, (3, 4))
    with torch.no_grad(), zip_speed_models.mixed(weave, 3, 1):
        first, second, third = weave.base.model(ids[:1].expand(3, -1)).logits
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    adapted = zip_speed_models.with_adapters(zip_speed_models.open_base(zip_speed_models.base_ref(tmp_path)), pack, 2)
    held = sum(p.numel() for name, p in adapted.named_parameters() if ".lora_" in name)
    assert held == 2 * zip_speed_models.factor_elements(pack)


@pytest.mark.slow
def test_memory_of_zip_speed(tmp_path: Path) -> None:
    found = result(zip_speed, tmp_path, "--stages", "memory")
    bytes_of = {row["way"]: row["tensor_bytes"] for row in found["rows"]}
    assert bytes_of[zip_speed.MEMORY["int8"]] < bytes_of[zip_speed.MEMORY["base"]]
    assert len(found["claims"]) == 2


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    # Four processes that import torch and transformers.
    found = result(memory, tmp_path)
    floor, base, weave, _ = (row["processes"][0]["loaded"]["rss"] for row in found["rows"])
    assert found["claims"][0]["value"] == pytest.approx((weave - floor) / (base - floor))
    assert found["claims"][-1]["value"] == found["rows"][2]["tensor_bytes"] / found["rows"][1]["tensor_bytes"]
    assert found["claims"][-1]["holds"]


def test_zip_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_memory, "NARROW", zip_memory.NARROW.model_copy(update={"hidden": 128, "intermediate": 256}))
    monkeypatch.setattr(zip_memory, "child", zip_memory.measured)  # without a process of its own
    found = result(zip_memory, tmp_path)
    assert [(row["layers"], row["way"]) for row in found["rows"]] == [
        (2, "work folder"),
        (2, "in memory"),
        (4, "work folder"),
    ]
    on_disk, in_memory, _ = found["rows"]
    assert on_disk["pack_bytes"] == in_memory["pack_bytes"] <= on_disk["model_bytes"] / 64
    assert on_disk["work_bytes"] > 0 == in_memory["work_bytes"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_zip_kernel_says_what_it_needs() -> None:
    with pytest.raises(UserError, match="GPU with CUDA"):
        zip_kernel.main(["--quick"])


def test_without_out_a_quick_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    mixed_batch.main(["--quick"])
    assert list(tmp_path.iterdir()) == []


def test_tpaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLWEAVE_CACHE", str(tmp_path / "cache"))
    found = result(tpaw, tmp_path)
    assert [(row["arm"], row["seed"]) for row in found["rows"]] == [(a, s) for a in ("SPIN", "TPAW") for s in (0, 1)]
    for row in found["rows"]:
        assert len(row["score"]) == 3
        assert row["steps"] == [2, 2]
        assert row["peak_bytes"] > 10**8
    assert len({row["tokens"][0] for row in found["rows"] if row["seed"] == 0}) == 1  # the first round: the same pairs


def test_tpaw_converged(tmp_path: Path) -> None:
    found = result(converged, tmp_path)
    plans = [(row["arm"], row["seed"]) for row in found["rows"]]
    assert plans == [(arm, seed) for seed in (0, 1) for arm in (None, "SPIN", "TPAW", "rejection-sampled SFT")]
    for row in found["rows"]:
        assert len(row["curve"]) == 2 if row["arm"] is None else len(row["score"]) == len(row["left"]) + 1 == 3
    spin, team = found["rows"][1:3]
    for key in ("score", "target", "generated"):
        assert spin[key][0] == team[key][0]  # one start
    assert spin["left"][0] == team["left"][0]  # and the same first answers
    assert spin["target"][1] != team["target"][1]


def test_cku(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLWEAVE_CACHE", str(tmp_path / "cache"))
    found = result(cku, tmp_path)
    arms = [(row["mask"], row["seed"]) for row in found["rows"]]
    assert arms == [(mask, seed) for mask in ("no mask", "contrast") for seed in (1, 2)]
    for row in found["rows"]:
        assert row["steps_taken"] == 5
        assert 0 <= row["forget"] <= 1
        assert row["retain"] > 0
        assert 0 <= row["forget_quality"] <= 1
        assert row["overlap"] == 0 if row["mask"] == "no mask" else 0 < row["overlap"] < 1
    difference = [
        unlearning.beside(row) - unlearning.beside(other)
        for row, other in zip(found["rows"][2:], found["rows"][:2], strict=True)
        if unlearning.reached(row) and unlearning.reached(other)  # who forgets less keeps more
    ]
    assert difference
    claims = {claim["claim"]: claim["value"] for claim in found["claims"]}
    (value,) = (claims[name] for name in claims if "kept beside, contrast less no mask, points" in name)
    assert value == pytest.approx(np.mean(difference))


def test_cku_robust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLWEAVE_CACHE", str(tmp_path / "cache"))
    found = result(lasting, tmp_path)
    assert found["command"].startswith("python -m benchmarks.cku.robust --quick")
    reference, both = found["rows"]
    assert reference["method"] == lasting.REFERENCE
    assert reference["retain"] == 1
    assert both["steps_taken"] > 0
    assert both["distil_steps"] == 2
    assert 0 < both["specific"] < 1
    for row in found["rows"]:
        assert set(row["relearning"]) == {"1", "2"}
        assert row["relearnt"] == max(row["relearning"].values())
        assert {"answers", "rounded_4", "unrelated", "neighbour_pack", "zips"} <= row.keys()


def test_the_lasting_setting_is_that_which_reaches_the_goals_and_keeps_most() -> None:
    def row(rate: float, forget: float, relearnt: float, held_out: float) -> dict:
        cell = {"method": "default", "mu": 5.0, "directions": 0, "noise": 0.0, "retain": 1.0, "goal": 0.1}
        return {**cell, "rate": rate, "forget": forget, "relearnt": relearnt, "held_out": held_out}

    tried = [row(1e-4, 0.5, 0.0, 1.0), row(2e-4, 0.1, 0.4, 0.9), row(3e-4, 0.1, 0.2, 0.8), row(4e-4, 0.1, 0.1, 0.7)]
    assert lasting.chosen(tried, "default").rate == 3e-4
    assert lasting.chosen(tried[:2], "default").rate == 2e-4  # what lasts least badly
    assert lasting.chosen(tried[:1], "default").rate == 1e-4


def test_e3tir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLWEAVE_CACHE", str(tmp_path / "cache"))
    found = result(e3tir, tmp_path)
    assert [(row["arm"], row["seed"]) for row in found["rows"]] == [
        (a, s) for a in ("Zero-RL", "E3-TIR") for s in (1, 2)
    ]
    for row in found["rows"]:
        assert 0 <= row["score"] <= 1
        assert row["sampled_tokens"] == row["curve"][-1][0] >= row["budget"]
        assert (row["expert_tokens"] == 0) == (row["joined"] is None) == (row["arm"] == "Zero-RL")
    assert {claim["claim"] for claim in found["claims"]} == {
        f"hops: {name}, E3-TIR less Zero-RL, points" for name in ("score", "mean on the way")
    }


def test_the_area_under_a_curve_holds_each_look_until_the_next() -> None:
    assert agents.area([(0, 0.0), (40, 0.5), (80, 1.0)], 100) == pytest.approx((40 * 0.0 + 40 * 0.5 + 20 * 1.0) / 100)
    assert agents.area([(0, 0.2), (50, 0.6), (130, 1.0)], 100) == pytest.approx((50 * 0.2 + 50 * 0.6) / 100)
    assert agents.area([(0, 0.0), (0, 0.7)], 10) == pytest.approx(0.7)  # supervised training alone


def test_hasty_experts_leave_out_the_last_search_and_the_others_do_not(tmp_path: Path) -> None:
    task = {"source": "builtin", "name": "hops", "config": agents.FAMILIES[agents.HASTY], "splits": {"train": 100}}
    file = agents._hasty_experts(E3tirConfig.model_validate({"task": task}), tmp_path)
    with (agent := load_agent(task)).toolbox:
        clean = {trace.id: trace for trace in scripted_traces(agent, agent.task.split("train"))}
    hasty = [trace for trace in read_traces(file) if trace.messages != clean[trace.id].messages]
    assert 45 <= len(hasty) <= 75
    gold = {entry.id: entry.answer for entry in agent.task.split("train")}
    for trace in hasty:
        *before, answer = trace.messages
        assert before == clean[trace.id].messages[: len(before)]
        assert len(before) == len(clean[trace.id].messages) - 3
        assert answer["content"] == before[-1]["content"].split()[-1] != gold[trace.id]


def test_roi_is_the_gain_times_what_was_saved() -> None:
    baseline = [{"score": 0.4, "expert_tokens": 300, "sampled_tokens": 700}]
    ours = [
        {"score": 0.5, "expert_tokens": 30, "sampled_tokens": 470},
        {"score": 0.7, "expert_tokens": 30, "sampled_tokens": 470},
    ]
    assert agents_show.roi_terms(ours, baseline) == (pytest.approx(1.5), pytest.approx(2.0))
    assert agents_show.roi_terms(ours, []) == (None, None)


def test_rollouts(tmp_path: Path) -> None:
    found = result(rollouts, tmp_path)
    assert {(row["what"], row["way"]) for row in found["rows"]} == {
        ("prefixes", "shared"),
        ("prefixes", "anew"),
        ("tools", "as soon as a turn is over"),
        ("tools", "after the batch"),
    }
    assert all(row["seconds"] > 0 for row in found["rows"])


# -- the weave that is measured --------------------------------------------------------------------------------------


def test_without_a_build_it_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mixed_batch.py"])
    with pytest.raises(SystemExit, match="2"):
        record.run(mixed_batch.main)
    assert "runs/demo holds no weave. Run `make demo` first" in " ".join(capsys.readouterr().err.split())


def test_without_the_deltas_it_says_which(tmp_path: Path) -> None:
    weave = skills.make_up(tmp_path / "weave")
    weave.skills[1].delta_folder.rename(tmp_path / "elsewhere")
    with pytest.raises(skills.UserError, match="reverse_words/delta/delta is missing"):
        skills.find(tmp_path / "weave")


def test_a_row_of_zip_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weave = skills.make_up(tmp_path / "weave")
    measured: list[str] = []

    def row(self, plan) -> dict:
        measured.append(plan.codec)
        return {"codec": plan.codec, "skill": plan.skill}

    monkeypatch.setattr(zip_codecs.Measuring, "row", row)
    todo = [plan for plan in zip_codecs.plans([weave.skills[0].name]) if plan.ratio == "1/32"]
    sizes = {"prompts": 1, "score": 1, "tokens": 1}
    assert len(zip_codecs.measure_all(weave, todo, sizes, 2)) == 2
    assert len(zip_codecs.measure_all(weave, todo, sizes, 2)) == 4
    assert len(zip_codecs.measure_all(weave, todo, sizes, None)) == len(todo) == 5
    assert sorted(measured) == sorted(plan.codec for plan in todo)
    # Another number of prompts is another row.
    assert len(zip_codecs.measure_all(weave, todo, {**sizes, "prompts": 2}, 1)) == 1


def test_every_codec_of_zip_gives_a_row(tmp_path: Path) -> None:
    weave = skills.make_up(tmp_path / "weave")
    base = skills.open_base(weave.base_ref, dtype="float32")
    measuring = zip_codecs.Measuring(weave, weave.skills[0], base, {"prompts": 3, "score": 2, "tokens": 2})
    todo = [plan for plan in zip_codecs.plans([weave.skills[0].name]) if plan.ratio in ("", "1/32")]
    rows = {plan.codec: measuring.row(plan) for plan in todo}
    assert rows.keys() == {"no pack (the base)", "the delta itself", *zip_codecs.CODECS}
    assert rows["the delta itself"]["kl"] == 0
    packed = [rows[codec]["kl"] for codec in zip_codecs.CODECS]
    assert len(set(packed)) == len(packed)  # each setting reaches the codec
    assert 0 < min(packed) <= max(packed) < rows["no pack (the base)"]["kl"] * 1.1
    exact = sum(float(measuring.delta.tensor(name).double().square().sum()) for name in measuring.delta.names())
    state = base.model.state_dict()
    whole = sum(float(state[name].double().square().sum()) for name in measuring.delta.names())
    assert rows["skillzip int4"]["delta_over_base"] == pytest.approx(math.sqrt(exact / whole), rel=1e-3)


def test_zip_measures_the_main_rows_first() -> None:
    todo = zip_codecs.plans(["a", "b"])
    assert len(set(todo)) == len(todo) == 2 * (2 + 5 + 3 + 3)
    assert [plan.codec for plan in todo[:6:2]] == ["no pack (the base)", "the delta itself", "skillzip int4"]
    assert [plan.scored for plan in todo] == [True] * 10 + [False] * 16


# -- the figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "low", "high", "goal", "holds"),
    [
        (1.5, 1.1, 1.9, "> 1", True),
        (1.5, 0.9, 1.9, "> 1", False),  # the interval reaches below
        (1.0, 1.0, 1.0, "> 1", False),
        (1.0, 1.0, 1.0, "<= 1", True),
        (1.2, 1.1, 1.3, "<= 1.25", False),
        (math.nan, math.nan, math.nan, "> 1", False),
    ],
)
def test_a_claim_holds_with_its_whole_interval(value: float, low: float, high: float, goal: str, holds: bool) -> None:
    assert record.judged("it", value, low, high, goal).holds is holds


def test_numbers_that_json_does_not_have_are_null() -> None:
    claim = asdict(record.judged("one seed", *record.student([2.0]), "> 1"))
    found = json.loads(record.result_text({"claims": [claim], "seconds": math.nan}), parse_constant=pytest.fail)
    assert found == {"claims": [{**claim, "low": None, "high": None}], "seconds": None}


def test_a_repeat_without_answers_is_left_out_of_the_claim_and_named() -> None:
    speeds = {
        ("skillweave, bare base", 0, ""): [4, 6, 9],
        ("skillweave", 8, "uniform"): [4, 6, 9],
        ("skillweave", 8, "skewed"): [4, 6, 9],
        ("transformers serve, bare base", 0, ""): [2, 0, 3],
    }
    rows = [
        {"way": way, "packs": packs, "use": use, "tokens_per_second": speed}
        for (way, packs, use), repeats in speeds.items()
        for speed in repeats
    ]
    claim = serving_show.claims(rows)[-1]
    assert (claim.value, claim.low, claim.high, claim.holds) == (2.5, 2, 3, True)
    assert "without 1 of 3 repeats" in claim.claim


def test_bootstrap_of_a_mean_is_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(5, 2, size=400)
    low, high = record.bootstrap(values, lambda picked: picked.mean(axis=1))
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)
    assert record.bootstrap(np.ones(3), lambda picked: np.median(picked, axis=1)) == (1, 1)


def test_answer_log_probabilities_are_those_of_single_unpadded_passes() -> None:
    model = micro_model().double()
    pairs = [([5, 6, 7], [8, 1]), ([9], [10, 11, 12, 1]), ([13, 14], [1])] * 4  # more than one batch
    found = list(zip_codecs.answer_log_probabilities(model, pairs, nullcontext))
    for (prompt, answer), log_probabilities in zip(pairs, found, strict=True):
        assert log_probabilities.shape[0] == len(answer)
        for at in range(len(answer)):
            logits = model(input_ids=torch.tensor([prompt + answer[:at]])).logits[0, -1]
            torch.testing.assert_close(log_probabilities[at], logits.log_softmax(-1).float())


def test_mean_kl_by_a_slow_loop() -> None:
    wanted, has = torch.randn(2, 3, 7, dtype=torch.float64).log_softmax(-1)
    slow = sum(math.exp(p) * (p - q) for p, q in zip(wanted.flatten().tolist(), has.flatten().tolist(), strict=True))
    assert zip_codecs.mean_kl(wanted, has) == pytest.approx(slow / 3)
    assert zip_codecs.mean_kl(wanted, wanted) == 0


def test_memory_is_counted_over_the_imports() -> None:
    def readings(*sizes: int) -> list[dict]:
        return [{"tensors": 0, "loaded": {"rss": size}, "answered": {"rss": size}} for size in sizes]

    taken = {"imports": readings(90, 100, 130), "base": readings(300, 310), "weave": [], "separate": []}
    assert memory.above_floor(taken, "base", "loaded") == [200, 210]


def test_equal_compute_is_the_same_number_of_sequences() -> None:
    sides = {"continued SFT": 1, "T-SPIN": 3}
    for arm in (*selfplay.ARMS, *selfplay.CUT):
        assert selfplay.equal_steps(arm, 24) * sides.get(arm, 2) == 48


def test_claims_of_self_play_are_differences_within_a_seed() -> None:
    def row(arm: str, seed: int, *score: float) -> dict:
        return {"arm": arm, "seed": seed, "score": score, "task": "t", "comparison": "c"}

    rows = [
        row("TPAW", 0, 0.1, 0.3, 0.5),
        row("TPAW", 1, 0.1, 0.8, 0.9),
        row("SPIN", 1, 0.1, 0.2, 0.6),
        row("SPIN", 0, 0.1, 0.2, 0.3),
        row("TPAW", 2, 0.0, 0.0, 1.0),
    ]
    assert selfplay.differences(rows, "TPAW", "SPIN", task="t") == pytest.approx([20, 30])
    claim = selfplay.ahead(rows, "SPIN", task="t", comparison="c")
    half = 12.706 * np.std([20, 30], ddof=1) / math.sqrt(2)
    assert (claim.value, claim.low, claim.high) == pytest.approx((25, 25 - half, 25 + half), abs=1e-2)
    assert not claim.holds
    assert selfplay.rises(rows, task="t", comparison="c").value == pytest.approx((20 + 10 + 100) / 3)
    assert record.student([4.0]) == (4.0, -math.inf, math.inf)


def test_settings_of_an_unlearning_are_chosen_among_those_that_forget() -> None:
    def row(rate: float, forget: float, held_out: float) -> dict:
        return {
            "loss": "NPO",
            "mask": "contrast",
            "rate": rate,
            "mu": 5.0,
            "forget": forget,
            "held_out": held_out,
            "goal": 0.2,
        }

    tried = [row(1e-4, 0.9, 1.0), row(1e-4, 0.1, 1.0), row(1e-3, 0.2, 0.8), row(1e-3, 0.21, 0.7), row(3e-3, 0.1, 0.1)]
    assert cku.chosen(tried, "NPO", "contrast") == (1e-3, 5.0)  # the first keeps most and does not forget every time
    assert cku.chosen(tried[:2], "NPO", "contrast") == (1e-4, 5.0)
    assert cku.chosen([row(1e-4, 0.9, 1.0), row(1e-3, 0.5, 0.3)], "NPO", "contrast") == (1e-3, 5.0)


def test_every_arm_of_the_unlearning_has_a_plan_and_sign_agreement_where_there_is_a_retain_gradient() -> None:
    tried = [{**vars(plan), "forget": 0.0, "held_out": plan.rate, "goal": 0.2} for plan in cku.grid_plans()]
    plans = cku.arm_plans([1, 2], tried)
    assert len(set(plans)) == len(plans) == 2 * (6 * 10 - 4)
    assert not [
        plan for plan in plans if plan.loss in ("GA", "RMU") and plan.mask in ("sign agreement", "contrast + sign")
    ]
    assert {plan.rate for plan in plans} == {3e-3}


@dataclass(frozen=True)
class Square:
    of: int


def squared(plan: Square) -> dict:
    return {"square": plan.of**2, "process": os.getpid()}


def test_runs_are_remembered_and_a_fresh_process_is_fresh(tmp_path: Path) -> None:
    plans = [Square(3), Square(4)]
    found = runs.run_all(plans, squared, tmp_path, jobs=1)
    assert [one["square"] for one in found] == [9, 16]
    assert {one["process"] for one in found} == {os.getpid()}
    assert runs.run_all(plans[::-1], None, tmp_path, jobs=1) == found[::-1]
    own = runs.run_all([Square(5), Square(6)], squared, tmp_path, jobs=1, fresh=True)
    assert len({os.getpid(), *(one["process"] for one in own)}) == 3
