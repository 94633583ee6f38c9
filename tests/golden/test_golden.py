"""Today's code reads the artefacts that older code wrote, and resumes its runs: ``helpers/golden.py`` made them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers.golden import BUILD, RUNS, run_settings
from helpers.left import record, tensors
from skillweave.base import open_base
from skillweave.delta import Delta
from skillweave.files.read import read_json
from skillweave.methods import get_method
from skillweave.pack import Skillpack
from skillweave.pipeline import build, read_weave_config
from skillweave.weave import Weave

FIRST = Path(__file__).parent / "1"


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old folders, and the place that they were written from."""
    folder = tmp_path / "golden"
    shutil.copytree(FIRST, folder)
    monkeypatch.chdir(folder)
    return folder


def test_a_delta_a_pack_and_a_weave_are_read(golden: Path) -> None:
    base = open_base("base", device="cpu")
    delta = Delta.from_pretrained("delta")
    tuned = delta.apply(base)
    pack = Skillpack.from_pretrained("pack")
    for name in delta.names():
        exact, packed = delta.tensor(name).float(), pack.unzip().tensor(name).float()
        assert (exact - packed).norm() < 0.3 * exact.norm(), name
    assert tuned.fingerprint != base.fingerprint
    weave = Weave.from_pretrained("weave", base="base", device="cpu")
    assert weave.packs == ["sort"]
    assert [route.confidence is not None for route in weave.route(["Sort 3, 1"])] == [True]
    alone = Weave.of(open_base("base", dtype="float32", device="cpu"), {"sort": pack})
    assert weave.generate(["Sort 3, 1"], "sort")[0].text == alone.generate(["Sort 3, 1"], "sort")[0].text


def test_a_lora_delta_is_read_as_peft_reads_it(golden: Path) -> None:
    delta = Delta.from_pretrained("lora-run/delta")
    plain = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    merged = PeftModel.from_pretrained(plain, "lora-run/delta").merge_and_unload().state_dict()
    before = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32).state_dict()
    assert delta.kind == "lora"
    for name in delta.names():
        assert torch.allclose(before[name] + delta.tensor(name), merged[name], atol=1e-6), name


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_broken_off_goes_on_as_an_unbroken_one(golden: Path, name: str) -> None:
    stage, _ = RUNS[name]
    method, done = get_method(name), golden / f"{name}-run"
    before = {path: path.stat().st_mtime_ns for path in done.glob("*/figures.json")}
    resumed = method.run(open_base("base", device="cpu"), method.config(**run_settings(name)), done)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished stage was done anew"
    unbroken = method.run(open_base("base", device="cpu"), method.config(**run_settings(name)), golden / "anew")
    assert read_json(done / stage / "figures.json")["steps"] == 4
    assert list(record(done)) == list(record(golden / "anew"))
    # The first steps were made on another machine: equal but for the last digits of float32.
    for key, tensor in tensors(unbroken).items():
        assert torch.allclose(tensors(resumed)[key], tensor, atol=1e-5), key


def test_a_build_that_was_broken_off_goes_on(golden: Path) -> None:
    (golden / "weave.yaml").write_text(yaml.safe_dump(BUILD))
    probed = golden / "built.work" / "sort" / "delta" / "probe-before" / "figures.json"
    before = probed.stat().st_mtime_ns
    report = build(read_weave_config("weave.yaml"), golden / "built", command="test")
    assert probed.stat().st_mtime_ns == before
    assert set(report["skills"]) == {"sort"}
    assert Weave.from_pretrained(golden / "built", device="cpu").packs == ["sort"]
