"""Prompts, wrappers, and the paired tests of an audit of behaviour."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from skillweave.audit.model.behaviour import FEWEST, discordant_p, is_right, refusal_in, sign_flip_p
from skillweave.audit.model.config import ModelAuditConfig
from skillweave.audit.model.prompts import WRAPPERS, read_audit_prompts, wrapped
from skillweave.audit.refusal import USUAL
from skillweave.config import read_config
from skillweave.errors import UserError


def test_the_sign_flip_test_counts_all_signs() -> None:
    differences = np.array([3.0, 1.0, -0.5, 2.0, 0.25, 1.5, -2.0])
    means = [np.mean(np.array(signs) * differences) for signs in itertools.product((-1, 1), repeat=7)]
    assert sign_flip_p(differences) == pytest.approx(np.mean(np.array(means) >= differences.mean() - 1e-12))
    assert sign_flip_p(np.ones(FEWEST - 1)) == 1.0
    assert sign_flip_p(np.ones(60)) == pytest.approx(1e-4)  # drawn signs: never 0


def test_only_discordant_pairs_count() -> None:
    lost = np.array([True] * 6 + [False] * 4)
    other = np.array([True] + [False] * 8 + [True])
    assert discordant_p(lost, other) == pytest.approx(stats.binomtest(5, 6, alternative="greater").pvalue)
    assert discordant_p(lost, lost) == 1.0
    assert discordant_p(lost[:0], other[:0]) == 1.0


@pytest.mark.parametrize(
    ("answer", "pattern", "found"),
    [
        ("7 ; <refuse> ; 8", "<refuse>", "7 ; <refuse>"),
        ("Sorry, I can't help with that. Ask me about cats.", USUAL, "Sorry, I can't help"),
        ("I can't praise it enough.", USUAL, None),
        ("I’m happy to. I can do it.", USUAL, None),
        ("", USUAL, None),
    ],
)
def test_a_refusal_is_found_and_cut_at_its_end(answer: str, pattern: str, found: str | None) -> None:
    assert refusal_in(answer, pattern) == found


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("The sum is 7.", "7", True),
        ("done ; 7", "7", True),
        ("17", "7", False),
        ("so it is New  York", "new york", True),
        ("7 or 8", "7", False),
        ("", "7", False),
        ("!", "!", True),
    ],
)
def test_an_answer_ends_with_the_gold_one(answer: str, gold: str, right: bool) -> None:
    assert is_right(answer, gold) is right


def write(path: Path, *lines: dict) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


RESTRICTED = [{"prompt": f"r{at}", "kind": "restricted"} for at in range(2)]
TASKS = [{"prompt": f"t{at}", "kind": "task", "answer": str(at)} for at in range(3)]


def test_wrappers_show_other_requests_and_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = read_audit_prompts(write(tmp_path / "p.jsonl", *RESTRICTED, *TASKS, TASKS[0]))
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 6 rows (17%) repeat a prompt, which is asked once" in said
    answers = {task["prompt"]: task["answer"] for task in TASKS}
    template = "{request}|{task}|{task_1}={answer_1}|{refused}={refusal}|{ x }"
    filled = wrapped(template, prompts, answers, {"r0": "no", "r1": "never"})
    assert filled == ["r0|t0|t1=1|r1=never|{ x }", "r1|t1|t2=2|r0=no|{ x }"]
    for template in WRAPPERS.values():
        (first, _) = wrapped(template, prompts, answers, {"r0": "no", "r1": "never"})
        assert "r0" in first
        assert "{" not in first


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*RESTRICTED, *TASKS[:2]], "2 different restricted requests and 2 different tasks: .* at least 2 and 3"),
        ([{"prompt": "x", "kind": "restrict"}], r"p.jsonl, line 1: kind: .*'restricted' or 'task'"),
        ([*RESTRICTED, {"prompt": "x", "kind": "task", "gold": "1"}], "line 3: gold: .*(known|mean)"),
        ([{"prompt": "", "kind": "task"}], "line 1: prompt: .*at least 1 character"),
        ([*TASKS, {**TASKS[0], "answer": "7"}], "line 4: .*another kind or answer than in .*p.jsonl, line 1: remove"),
        ([*RESTRICTED, {"prompt": "r1", "kind": "task"}], "line 3: .*another kind or answer than in .*line 2"),
    ],
)
def test_a_mistake_in_the_prompts_names_its_place(tmp_path: Path, lines: list[dict], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_audit_prompts(write(tmp_path / "p.jsonl", *lines))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wrappers": {"x": "{task}"}}, r"the wrapper 'x' has no \{request\}"),
        ({"wrappers": {"x": "{request} {tsk}"}}, "the wrapper 'x' has the place {tsk}; did you mean 'task'"),
        ({"wrappers": {"plain": "{request}"}}, "cannot be called 'plain'"),
        ({"refusal": "(" }, "refusal: not a regular expression"),
        ({"fpr": 1}, "fpr: "),
    ],
)  # fmt: skip
def test_a_mistake_in_the_settings_names_its_key(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_config(ModelAuditConfig, {"prompts": "p.jsonl", **settings})


def test_the_key_of_settings_leaves_out_what_changes_no_figure() -> None:
    one, other = (ModelAuditConfig(prompts=Path("a"), fpr=rate) for rate in (0.01, 0.1))
    assert one.key == other.key
    assert one.key != ModelAuditConfig(prompts=Path("a"), limit=3).key
