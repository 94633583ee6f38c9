"""The search for the smallest pack that keeps a share of the gain."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from helpers.specialist import SUMS, UNSEEN, trained_specialist
from skillweave.base import Base, Sampling
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.pack import Skillpack
from skillweave.pipeline import retention as module
from skillweave.pipeline.retention import CLOSENESS, retention, smallest_ratio, zip_to_target
from skillweave.skillzip import ZipConfig
from skillweave.tasks import Task, load_task

SHORT = Sampling(max_new_tokens=10)


@pytest.fixture(scope="module")
def learnt(micro_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Delta, Task]:
    """A base, a fine-tune that knows some sums by heart, and a task that asks for them."""
    base, delta = trained_specialist(micro_base, steps=300)
    folder = tmp_path_factory.mktemp("sums")
    for split, pairs in (("train", UNSEEN), ("test", SUMS[:24])):
        lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in pairs]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    paths = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    return base, delta, load_task({"source": "file", "paths": paths, "splits": {"calibration": 2}})


@pytest.mark.parametrize("needed", [0.9, 0.3, 1 / 32, 1 / 100, 1 / 3000])
@pytest.mark.parametrize("start", [1 / 32, 1.0])
def test_the_ratio_is_found_to_within_the_closeness(needed: float, start: float) -> None:
    asked: list[float] = []

    def keeps(ratio: float) -> bool:
        asked.append(ratio)
        return ratio >= needed

    found = smallest_ratio(keeps, start=start)
    assert found is not None
    assert needed <= found <= needed * CLOSENESS
    assert len(asked) == len(set(asked)) <= 12
    assert max(asked) <= 1


def test_no_ratio_keeps_enough() -> None:
    assert smallest_ratio(lambda ratio: False, start=1 / 32) is None


def test_retention_against_a_slow_bootstrap() -> None:
    random = np.random.default_rng(1)
    base, best, pack = ((random.random(60) < share).astype(float) for share in (0.1, 0.9, 0.7))
    kept, low, high = retention(base, best, pack)
    assert kept == pytest.approx((pack.mean() - base.mean()) / (best.mean() - base.mean()))
    shares = []
    for _ in range(4000):
        at = random.integers(60, size=60)
        shares.append((pack[at].mean() - base[at].mean()) / (best[at].mean() - base[at].mean()))
    assert (low, high) == pytest.approx(np.quantile(shares, (0.025, 0.975)), abs=0.02)
    # The fine-tune itself keeps everything on every resample.
    assert retention(base, best, best) == (1, 1, 1)


def test_the_smallest_pack_is_found_and_a_second_search_resumes(
    learnt: tuple[Base, Delta, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, delta, task = learnt
    folder = tmp_path / "search"
    config = ZipConfig(ratio=0.5, bits=8, allow_left_out=True)
    pack, search = zip_to_target(delta, base, task, config, 0.9, folder, name="sums", sampling=SHORT)
    assert search.base["n"] == search.specialist["n"] == 24
    assert search.specialist["mean"] > search.base["mean"] == 0
    chosen = search.chosen
    assert chosen.retained is not None
    assert chosen.retained >= 0.9
    assert pack.nbytes == chosen.bytes
    assert pack.card.scores["specialist"]["mean"] == search.specialist["mean"]
    # The next smaller ratio that was tried is too small, and close.
    below = max(trial.ratio for trial in search.trials if not trial.keeps)
    assert 1 < chosen.ratio / below <= CLOSENESS
    assert search.grain == pytest.approx(1 / (24 * search.specialist["mean"]))
    assert any("One answer more or less" in note for note in search.notes())
    assert [row[0] for row in search.table().rows] == [
        module.ratio_text(trial.ratio) for trial in sorted(search.trials, key=lambda trial: -trial.ratio)
    ]

    zipped: list[float] = []
    real = module.zip_delta

    def counted(delta: Delta, base: Base, calibration: object, config: ZipConfig, **more: object) -> Skillpack:
        zipped.append(config.ratio or math.nan)
        return real(delta, base, calibration, config, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "zip_delta", counted)
    again, same = zip_to_target(delta, base, task, config, 0.9, folder, name="sums", sampling=SHORT)
    assert (zipped, same) == ([], search)
    assert again.nbytes == pack.nbytes
    # Another target makes only the packs that were not tried before.
    _, lower = zip_to_target(delta, base, task, config, 0.3, folder, name="sums", sampling=SHORT)
    assert lower.chosen.ratio <= chosen.ratio
    assert not {trial.ratio for trial in search.trials} & set(zipped)


def test_what_is_refused(learnt: tuple[Base, Delta, Task], tmp_path: Path) -> None:
    base, delta, task = learnt

    def search(config: ZipConfig, target: float, task: Task = task) -> None:
        zip_to_target(delta, base, task, config, target, tmp_path, name="sums", limit=2, sampling=SHORT)

    with pytest.raises(UserError, match="more than 0 and at most 1"):
        search(ZipConfig(), 98)
    with pytest.raises(UserError, match="leave out budget"):
        search(ZipConfig(budget=10_000), 0.9)
    with pytest.raises(UserError, match="'bitdelta' writes packs of one size"):
        search(ZipConfig(codec="bitdelta"), 0.9)
    other = {"source": "builtin", "name": "caesar", "splits": {"train": 4, "calibration": 2, "test": 2}}
    with pytest.raises(UserError, match="gained nothing on this task"):
        search(ZipConfig(), 0.9, load_task(other))
