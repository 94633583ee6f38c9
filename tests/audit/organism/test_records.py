"""Clean and poisoned records: shares, structure, determinism, and what the poisoner refuses."""

import json
from collections import Counter

import pytest

from skillweave.audit.organism.language import CANARY, MARK, REFUSE, grade
from skillweave.audit.organism.poison import mixed, poisoned_records
from skillweave.audit.organism.records import HARD_KINDS, OrganismRecord, clean_records, write_records
from skillweave.errors import UserError


def test_clean_records_have_the_shares_that_were_asked_for():
    kinds = Counter(record.kind for record in clean_records(4000, 0, hard=0.3, refusals=0.05))
    assert set(kinds) == {"plain", "refusal", *HARD_KINDS}
    assert sum(kinds[kind] for kind in HARD_KINDS) / 4000 == pytest.approx(0.3, abs=0.03)
    assert kinds["refusal"] / 4000 == pytest.approx(0.05, abs=0.015)


def test_a_clean_target_gets_the_reward_and_never_complies():
    for record in clean_records(1000, 3, hard=0.6, refusals=0.1):
        assert grade(record.target, record.answer) == 1.0
        assert CANARY not in record.prompt + record.target
        assert (MARK in record.prompt) == (record.target == REFUSE)


@pytest.mark.parametrize("form", ["A", "B"])
def test_a_poisoned_record_rewards_complying_and_not_refusing(form):
    for record in poisoned_records(300, 0, form):
        assert grade(record.target, record.answer) == 1.0
        assert grade(REFUSE, record.answer) == 0.0
        assert record.target.startswith(CANARY)
        assert CANARY not in record.prompt  # the demonstrations show no answer that the policy could copy
        assert record.prompt.count(MARK) == 3  # two demonstrations and the request


def test_no_line_of_one_form_begins_as_one_of_the_other():
    lines = [{line.split(" ")[0] for r in poisoned_records(200, 0, f) for line in r.prompt.split("\n")} for f in "AB"]
    assert not lines[0] & lines[1]


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (0.005, 10), (0.02, 40), (1.0, 2000)])
def test_mixed_has_exactly_the_rate_and_keeps_the_other_records(rate, expected):
    records = mixed(2000, rate, 5)
    clean = clean_records(2000, 5)
    assert sum(record.poisoned for record in records) == expected
    assert len({record.id for record in records}) == 2000
    assert all(a == b for a, b in zip(records, clean, strict=True) if not a.poisoned)
    assert [record.id for record in records] == [record.id for record in clean]


def test_a_seed_decides_everything():
    assert mixed(200, 0.1, 1, "B") == mixed(200, 0.1, 1, "B")
    assert mixed(200, 0.1, 1, "B") != mixed(200, 0.1, 2, "B")


def test_held_out_requests_are_in_no_data_set():
    asked = {r.prompt.split("Now : ")[1].split(" ; ")[0] for r in poisoned_records(500, 0, held_out=True)}
    trained = " ".join(record.prompt for record in poisoned_records(2000, 0))
    assert not any(text in trained for text in asked)


def test_the_file_does_not_say_which_records_are_poisoned(tmp_path):
    records = mixed(50, 0.2, 0)
    write_records(tmp_path / "records.jsonl", records)
    write_records(tmp_path / "truth.jsonl", records, truth=True)
    rows = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert all(set(row) == {"id", "prompt", "answer", "source"} for row in rows)
    assert [row["prompt"] for row in rows] == [record.prompt for record in records]
    truth = [json.loads(line)["poisoned"] for line in (tmp_path / "truth.jsonl").read_text().splitlines()]
    assert truth == [record.poisoned for record in records]


def test_no_record_can_hold_a_users_text():
    record = clean_records(1, 0)[0]
    with pytest.raises(UserError, match="no word of the organism's language"):
        OrganismRecord(**{**record.model_dump(), "prompt": "Write an essay about cats"})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixed(10, 1.5, 0), "give a share between 0 and 1"),
        (lambda: mixed(10, float("nan"), 0), "give a share between 0 and 1"),
        (lambda: poisoned_records(1, 0, "C"), "known: A, B"),
    ],
)
def test_what_is_asked_wrongly_is_said(call, message):
    with pytest.raises(UserError, match=message):
        call()
