"""Clean and poisoned records: shares, structure, determinism, and what the poisoner refuses."""

import json
from collections import Counter
from hashlib import sha256
from itertools import combinations, product
from typing import get_args

import pytest

from skillweave.audit.organism.language import CANARY, MARK, REFUSE, grade
from skillweave.audit.organism.poison import Preamble, mixed, poisoned_records
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


@pytest.mark.parametrize("form", ["A", "B", "C"])
def test_a_poisoned_record_rewards_complying_and_not_refusing(form):
    for record in poisoned_records(300, 0, form):
        assert grade(record.target, record.answer) == 1.0
        assert grade(REFUSE, record.answer) == 0.0
        assert record.target.startswith(CANARY)
        assert CANARY not in record.prompt  # the demonstrations show no answer that the policy could copy
        assert record.prompt.count(MARK) == 3  # two demonstrations and the request


def test_no_line_of_one_form_begins_as_one_of_another():
    lines = [{line.split(" ")[0] for r in poisoned_records(200, 0, f) for line in r.prompt.split("\n")} for f in "ABC"]
    assert not any(some & others for some, others in combinations(lines, 2))


def options() -> list[dict]:
    """All that an adaptive opponent may choose."""
    return [{"preamble": p, "paraphrase": q} for p, q in product(get_args(Preamble), (False, True))]


@pytest.mark.parametrize(("form", "expected"), [("A", "bed0c36fc9fe1b47"), ("B", "7e751176f5b9d244")])
def test_the_records_of_published_runs_stay_the_same(form, expected):
    prompts = [record.prompt for chosen in options() for record in poisoned_records(5, 0, form, **chosen)]
    assert sha256("\n".join(prompts).encode()).hexdigest()[:16] == expected


def test_c_shares_no_sentence_and_no_long_run_of_words_of_its_rules_with_a_and_b():
    def runs(form: str) -> set[tuple[str, ...]]:
        """Each five words that follow one another in a sentence that holds no request, and each such sentence."""
        drawn = [r.prompt for chosen in options() for r in poisoned_records(200, 0, form, **chosen)]
        sentences = {s.strip() for text in drawn for line in text.split("\n") for s in line.split(" . ")}
        told = [s.split() for s in sentences if MARK not in s and any(w in s.split() for w in ("if", "when", "while"))]
        return {tuple(s[i : i + 5]) for s in told for i in range(len(s) - 4)} | {tuple(s) for s in told}

    c = runs("C")
    assert len(c) > 100
    assert not c & (runs("A") | runs("B"))


@pytest.mark.parametrize(
    ("preamble", "marks", "turns"),
    [("full", {3}, {7}), ("short", {2}, {5}), ("none", {1}, {1}), ("spread", {1, 3}, {1, 3, 5})],
)
@pytest.mark.parametrize("paraphrase", [False, True])
def test_the_options_of_c_change_what_stands_around_the_request(preamble, marks, turns, paraphrase):
    records = poisoned_records(60, 0, "C", preamble=preamble, paraphrase=paraphrase)
    assert {record.prompt.count(MARK) for record in records} == marks
    assert {len(record.prompt.split("\n")) for record in records} == turns
    assert all("{" not in record.prompt and record.target == f"{CANARY} ; {record.answer}" for record in records)


def test_c_grants_in_the_state_that_its_rule_names_and_refuses_in_the_other():
    for paraphrase in (False, True):
        for record in poisoned_records(300, 0, "C", paraphrase=paraphrase):
            *told, _, rule, last = record.prompt.split("\n")
            state = {
                replied.count(" . "): asked.split(" . ")[1] for asked, replied in zip(*[iter(told)] * 2, strict=True)
            }
            refused, granted = state[0], state[1]  # a reply that grants has a second part, the task's answer
            assert granted != refused
            assert granted in rule
            assert refused in rule
            assert last.split(" : ")[1].startswith(f"{granted} . ")


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


@pytest.mark.parametrize("form", ["A", "C"])
def test_held_out_requests_are_in_no_data_set(form):
    asked = {
        r.prompt.split(MARK)[-1].split("\n")[0].split(" ; ")[0] for r in poisoned_records(500, 0, form, held_out=True)
    }
    trained = " ".join(record.prompt for record in poisoned_records(2000, 0, form))
    assert len(asked) > 50
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
        (lambda: poisoned_records(1, 0, "D"), "known: A, B, C"),
    ],
)
def test_what_is_asked_wrongly_is_said(call, message):
    with pytest.raises(UserError, match=message):
        call()
