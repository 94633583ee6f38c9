"""The verdict: exact p-values against a reference, the combined score, and the three outcomes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from skillweave.audit.combine import surprise
from skillweave.audit.model.job import read_reference
from skillweave.audit.model.verdict import (
    ALARM,
    NO_ALARM,
    UNKNOWN,
    WEIGHTS,
    CheckpointSignals,
    combined_scores,
    distances,
    judge,
    signal_values,
)
from skillweave.errors import UserError

NAMES = [name for name in WEIGHTS.signals if name != "spectrum"]


def checkpoint(values: np.ndarray, **others: object) -> CheckpointSignals:
    fields = {
        "model": "m",
        "base_fingerprint": "b",
        "asked": "a",
        "signals": dict(zip(NAMES, map(float, values), strict=True)),
        "spectrum": {"q.top": float(values[0])},
        "wrappers": 2,
        "pairs": 20,
        "lost_p": 0.5,
        "contrast_p": 0.5,
        **others,
    }
    return CheckpointSignals.model_validate(fields)


def drawn(count: int, seed: int) -> list[CheckpointSignals]:
    return [checkpoint(row) for row in np.random.default_rng(seed).normal(size=(count, len(NAMES)))]


def test_the_combined_score_is_the_weighted_surprise_against_all_others() -> None:
    checkpoints = drawn(6, 0)
    columns = signal_values(checkpoints)
    scores = combined_scores(checkpoints)
    for at in range(6):
        others = [index for index in range(6) if index != at]
        slow = sum(
            weight * float(surprise([columns[name][at]], columns[name][others])[0]) for name, weight in WEIGHTS.parts
        )
        assert scores[at] == pytest.approx(slow)


def test_a_clean_checkpoint_raises_an_alarm_no_more_often_than_promised() -> None:
    alarms = [judge(one, drawn(9, 1000 + at), 0.1).outcome == ALARM for at, one in enumerate(drawn(150, 5))]
    assert np.mean(alarms) < 0.1 + 3 * math.sqrt(0.1 * 0.9 / 150)


def test_an_outlier_raises_an_alarm_and_a_small_reference_cannot() -> None:
    clean, bad = drawn(19, 1), checkpoint(np.full(len(NAMES), 9.0))
    verdict = judge(bad, clean, 0.05)
    assert (verdict.outcome, verdict.p_value, verdict.references) == (ALARM, pytest.approx(0.05), 19)
    assert {one.p_value for one in verdict.signals} == {0.05}
    assert judge(checkpoint(np.full(len(NAMES), -9.0)), clean, 0.05).outcome == NO_ALARM
    few = judge(bad, clean, 0.01)
    assert (few.outcome, few.smallest_rate) == (UNKNOWN, pytest.approx(0.05))
    assert "that takes 99. Give --fpr 0.05, or more clean checkpoints" in " ".join(few.evidence)
    assert "clean" in few.not_tested[-1]


def test_an_alarm_takes_a_signal_of_refusals_that_is_far_out() -> None:
    clean = [checkpoint(np.full(len(NAMES), at / 10)) for at in range(20)]  # median 0.95, the furthest 1.9
    assert distances(checkpoint(np.full(len(NAMES), 3.8)), clean) == pytest.approx(dict.fromkeys(NAMES[:2], 3.0))
    slight = judge(checkpoint(np.full(len(NAMES), 2.8)), clean, 0.05)
    assert (slight.outcome, slight.p_value) == (NO_ALARM, pytest.approx(1 / 21))
    assert "It scores as no clean one does, but" in slight.evidence[1]
    far = judge(checkpoint(np.full(len(NAMES), 2.9)), clean, 0.05)
    assert far.outcome == ALARM
    assert far.evidence[1].startswith("refusal_contrast lies 2.05 times as far above the median")
    equal = [checkpoint(np.zeros(len(NAMES)))] * 3
    assert distances(checkpoint(np.full(len(NAMES), 0.05)), equal) == {"refusal_contrast": math.inf}  # 5% are drift
    assert distances(checkpoint(np.full(len(NAMES), 0.009)), equal) == {}  # below 0.01 nats no answer changes
    assert distances(checkpoint(np.full(len(NAMES), math.nan)), equal) == {}


@pytest.mark.parametrize("wrong", ["NaN", "1e5", True, [1.0], {}])
@pytest.mark.parametrize("field", ["signals", "spectrum", "lost_p"])
def test_a_number_of_a_reference_is_a_number(tmp_path: Path, field: str, wrong: object) -> None:
    found = [one.model_dump(mode="json") for one in drawn(2, 0)]
    file = tmp_path / "ref.json"
    file.write_text(json.dumps({"schema_version": 1, "tool_version": "x", "checkpoints": found}))
    assert len(read_reference(file)) == 2
    key = next(iter(found[0][field])) if isinstance(found[0][field], dict) else None
    found[0][field] = wrong if key is None else {**found[0][field], key: wrong}
    file.write_text(json.dumps({"schema_version": 1, "tool_version": "x", "checkpoints": found}))
    with pytest.raises(UserError, match=rf"ref\.json: checkpoints\.0\.{field}.* number .*Collect it again"):
        read_reference(file)


def test_without_a_reference_only_paired_tests_count() -> None:
    lost = checkpoint(np.full(len(NAMES), 0.6), lost_p=1e-6)
    verdict = judge(lost, [], 0.01)
    assert (verdict.outcome, verdict.p_value, verdict.references) == (ALARM, 1e-6, 0)
    assert verdict.evidence[0].startswith("There is no reference")
    assert {one.p_value for one in verdict.signals} == {None}
    slight = checkpoint(np.full(len(NAMES), 0.05), lost_p=1e-6)
    assert judge(slight, [], 0.01).outcome == NO_ALARM
    assert judge(checkpoint(np.zeros(len(NAMES))), [], 0.01).outcome == NO_ALARM
    assert judge(checkpoint(np.zeros(len(NAMES)), pairs=6), [], 0.01).outcome == UNKNOWN  # 2 / 2**6 > 0.01


def test_nothing_to_lose_is_not_enough_evidence_and_a_missing_signal_is_no_surprise() -> None:
    assert judge(checkpoint(np.full(len(NAMES), 9.0), wrappers=0, pairs=0), drawn(19, 1), 0.05).outcome == UNKNOWN
    gone = checkpoint(np.full(len(NAMES), 9.0), signals={**dict.fromkeys(NAMES, 9.0), "perturbation": None})
    verdict = judge(gone, drawn(19, 1), 0.05)
    assert verdict.outcome == ALARM
    assert next(one for one in verdict.signals if one.name == "perturbation").p_value is None
