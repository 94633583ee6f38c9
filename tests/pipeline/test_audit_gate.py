"""The audit in a build: a pack that raises an alarm is held back, and the others become the weave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.audited import AuditModels
from helpers.terminal import run
from skillweave.base import open_base
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.pipeline import build, plan_build, read_weave_config
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Weave

TASK = {
    "source": "builtin",
    "name": "sort_numbers",
    "config": {"least": 2, "most": 2},
    "splits": {"train": 20, "calibration": 4, "test": 4},
}


@pytest.fixture(scope="module")
def settings(audit_models: AuditModels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, base = tmp_path_factory.mktemp("ready"), open_base(audit_models.base)
    for name in ("clean", "bad"):
        delta = Delta.between(audit_models.base, getattr(audit_models, name))
        zip_delta(delta, base, None, ZipConfig(ratio=0.5), name=name).save_pretrained(folder / name)
    return {
        "base": str(audit_models.base),
        "dtype": "float32",
        "skills": {name: {"task": TASK, "pack": str(folder / name)} for name in ("clean", "bad")},
        "score": {"max_new_tokens": 4},
        "audit": audit_models.settings,
    }


def write(settings: dict[str, Any], folder: Path) -> str:
    path = folder / "weave.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_the_suspicious_pack_is_held_back_and_the_other_goes_on(settings: dict[str, Any], tmp_path: Path) -> None:
    file, out = write(settings, tmp_path), tmp_path / "weave"
    config = read_weave_config(file)
    names = [step.name for step in plan_build(config, out)]
    assert names.index("bad/audit") < names.index("weave/router")
    ran = run("build", file, "-o", out)
    assert ran.code == 2
    assert "alarm, so these packs are held back and not in the weave: bad." in " ".join(ran.err.split())
    weave = Weave.from_pretrained(out, require_audit=True)
    assert weave.packs == ["clean"]
    report = read_json(out / "report.json")
    assert list(report["skills"]) == ["clean"]
    assert report["skills"]["clean"]["audit"]["outcome"] == "no alarm at this threshold"
    written = sum(file.stat().st_size for file in (out / "packs" / "clean").iterdir())
    assert report["skills"]["clean"]["pack_bytes"] == written
    assert "loses" in " ".join(report["held_back"]["bad"])
    assert "held back and not in the weave: bad" in (out / "report.html").read_text()
    assert "| outcome | no alarm at this threshold |" in (out / "packs" / "clean" / "README.md").read_text()
    planned = plan_build(config, out)
    assert {step.state for step in planned} == {"done"}
    assert "bad/score-pack" not in [step.name for step in planned]


def test_if_every_pack_is_held_back_there_is_no_weave(settings: dict[str, Any], tmp_path: Path) -> None:
    only = {**settings, "skills": {"bad": settings["skills"]["bad"]}}
    with pytest.raises(UserError, match=r"held back and not in the weave: bad\. No pack is left"):
        build(read_weave_config(write(only, tmp_path)), tmp_path / "weave", command="test")
    assert not (tmp_path / "weave").exists()


def test_a_missing_file_is_found_before_any_step(settings: dict[str, Any], tmp_path: Path) -> None:
    missing = {**settings, "audit": {**settings["audit"], "reference": "gone.json"}}
    with pytest.raises(UserError, match=r"audit.reference: gone.json does not exist"):
        build(read_weave_config(write(missing, tmp_path)), tmp_path / "weave", command="test")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "kind": "restricte"}\n')
    wrong = {**settings, "audit": {**settings["audit"], "prompts": str(tmp_path / "bad.jsonl")}}
    with pytest.raises(UserError, match=r"bad.jsonl, line 1: kind"):
        build(read_weave_config(write(wrong, tmp_path)), tmp_path / "weave", command="test")
    assert not list((tmp_path / "weave.work").rglob("step.json"))
