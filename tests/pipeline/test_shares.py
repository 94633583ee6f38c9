"""One budget for all packs: the split is measured, never exceeded, recorded, and redone only where it changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.tiny import TASK, TINY
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.pipeline import build, plan_build, read_weave_config
from skillweave.pipeline.shares import Shares, share_out
from skillweave.skillzip.share import Curve

BUDGET = 44_000


def settings(base: Path, **more: Any) -> dict[str, Any]:
    skill = {"task": TASK, "settings": TINY}
    hard = {"task": TASK, "settings": {**TINY, "warm_start": {**TINY["warm_start"], "steps": 12}}}
    return {
        "name": "micro",
        "base": str(base),
        "skills": {"easy": skill, "hard": hard},
        "score": {"max_new_tokens": 4},
        "pack_budget": BUDGET,
        **more,
    }


def written(values: dict[str, Any], folder: Path) -> str:
    file = folder / "weave.yaml"
    file.write_text(yaml.safe_dump(values))
    return str(file)


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def test_a_weave_with_one_budget(micro_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, work = tmp_path / "weave", tmp_path / "weave.work"
    config = read_weave_config(written(settings(micro_base), tmp_path))
    names = [step.name for step in plan_build(config, out)]
    assert names.index("hard/score-specialist") < names.index("weave/shares") < names.index("easy/pack")

    # A kill after the first skill was measured: the next build measures the other one only.
    with monkeypatch.context() as patch:
        patch.setattr("skillweave.pipeline.shares.share_out", None)
        with pytest.raises(TypeError):
            build(config, out, command="test")
    measured = {file: file.stat().st_mtime_ns for file in work.rglob("loss-*.json")}
    assert len(measured) >= 6
    with monkeypatch.context() as patch:
        patch.setattr("skillweave.skillzip.loss_curve.zip_once", None)
        with pytest.raises(TypeError):  # the sizes that no pack has are tried again, those that were measured are not
            build(config, out, command="test")
    assert {file: file.stat().st_mtime_ns for file in work.rglob("loss-*.json")} == measured

    report = build(config, out, command="test")
    shares = Shares.model_validate(read_json(work / "weave" / "shares" / "shares.json"))
    packs = {skill: folder_bytes(out / "packs" / skill) for skill in shares.skills}
    assert sum(packs.values()) <= BUDGET
    assert sum(share.bytes for share in shares.skills.values()) <= BUDGET
    for skill, share in shares.skills.items():
        assert packs[skill] <= share.bytes
        losses = [loss for _, loss in share.points]
        assert losses[0] > losses[-1] >= 0
        assert share.loss is not None
        assert losses[-1] <= share.loss <= losses[0]
    assert report["pack_budget"]["taken"] == sum(packs.values())
    assert report["pack_budget"]["shares"] == shares.model_dump(mode="json")
    assert "How the bytes were split" in (out / "report.md").read_text()
    assert not [path for path in (work / "weave" / "shares").iterdir() if path.is_dir()]
    assert {step.state for step in plan_build(config, out)} == {"done"}

    more = read_weave_config(written(settings(micro_base, pack_budget=BUDGET + 4_000), tmp_path))
    states = {step.name: step.state for step in plan_build(more, out)}
    assert states["weave/shares"] == "to do again"
    assert states["easy/pack"] == states["hard/pack"] == "perhaps again"
    assert states["hard/delta"] == "done"

    # Ready packs come first, and the only other skill gets what is left.
    ready = {"task": TASK, "pack": str(out / "packs" / "hard")}
    taken = packs["hard"]
    again = settings(micro_base, pack_budget=taken + 20_000)
    again["skills"]["hard"] = ready
    build(read_weave_config(written(again, tmp_path)), out, command="test")
    shares = Shares.model_validate(read_json(work / "weave" / "shares" / "shares.json"))
    assert shares.ready == {"hard": taken}
    assert {skill: share.bytes for skill, share in shares.skills.items()} == {"easy": 20_000}
    assert 18_000 < folder_bytes(out / "packs" / "easy") <= 20_000

    with pytest.raises(UserError, match=rf"pack_budget: {taken} bytes are too few: the ready packs \(hard\)"):
        build(read_weave_config(written({**again, "pack_budget": taken}, tmp_path)), out, command="test")


def test_the_least_total_is_named() -> None:
    curves: dict[str, Curve | None] = {"a": Curve(((300, 1.0), (600, 0.1))), "b": Curve(((200, 1.0),))}
    with pytest.raises(UserError, match=r"at least 640 bytes \(a 300, b 200, c 100 \(ready\), audits 40\)"):
        share_out(639, {"c": 100}, curves, reserved=40)
    shares = share_out(640, {"c": 100}, curves, reserved=40)
    assert [share.bytes for share in shares.skills.values()] == [300, 200]
    assert [share.loss_of_equal for share in shares.skills.values()] == [None, 1.0]


@pytest.mark.parametrize(
    ("more", "key"),
    [({"zip": {"ratio": "1/64"}}, "zip.ratio"), ({"zip": {"budget": "1MB"}}, "zip.budget")],
)
def test_another_limit_beside_it_is_an_error_that_names_both(
    micro_base: Path, tmp_path: Path, more: dict[str, Any], key: str
) -> None:
    with pytest.raises(UserError, match=rf"`pack_budget` .* `{key}`"):
        read_weave_config(written(settings(micro_base, **more), tmp_path))
    own = settings(micro_base)
    own["skills"]["easy"] |= more
    with pytest.raises(UserError, match=rf"`pack_budget` .* `skills.easy.{key}`"):
        read_weave_config(written(own, tmp_path))
    del own["pack_budget"]
    assert read_weave_config(written(own, tmp_path)).pack_budget is None
