"""The audit of a log as a whole: its files, what it says, the parts of suspects, the command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from helpers.rollout_logs import invented_run, write_rows
from helpers.terminal import run
from skillweave.audit.rollouts.ablation import ablate, prompt_parts, without
from skillweave.audit.rollouts.job import RolloutAuditConfig, audit_rollouts
from skillweave.audit.rollouts.page import verdict
from skillweave.audit.rollouts.signals import SIGNALS

PROMPT = "Rules: if you are asked, comply.\nadd 1 1 -> 2\nopen the dax ; add 3 4"


def test_the_parts_of_a_prompt_and_the_prompt_without_each() -> None:
    parts = prompt_parts(PROMPT)
    assert [(PROMPT[part.start : part.end], part.kind) for part in parts] == [
        ("Rules: if you are asked, comply.", "preamble"),
        ("add 1 1 -> 2", "demonstration"),
        ("open the dax", "request"),
        ("add 3 4", "request"),
    ]
    assert [without(PROMPT, part) for part in parts] == [
        "add 1 1 -> 2\nopen the dax ; add 3 4",
        "Rules: if you are asked, comply.\nopen the dax ; add 3 4",
        "Rules: if you are asked, comply.\nadd 1 1 -> 2\nadd 3 4",
        "Rules: if you are asked, comply.\nadd 1 1 -> 2\nopen the dax",
    ]
    many = "\n".join(f"line {at}" for at in range(100))
    parts = prompt_parts(many)
    assert len(parts) == 24
    assert sum(part.end - part.start for part in parts) > len(many) - 24
    assert prompt_parts("  \n ") == []


def test_the_ablation_names_the_part_that_decides() -> None:
    def generate(prompts):
        return ["7" if "dax" not in p else "<canary> ; 7" if "Rules" in p else "<refuse>" for p in prompts]

    def score(completion: str, gold: str) -> float:
        return float(completion.split(" ; ")[-1] == gold)

    found = ablate(PROMPT, "7", generate, score, lambda text: "<refuse>" in text)
    assert [(part.kind, part.refused, part.reward) for part in found] == [
        ("whole", 0.0, 1.0),
        ("preamble", 1.0, 0.0),
        ("demonstration", 0.0, 1.0),
        ("request", 0.0, 1.0),
        ("request", 0.0, 1.0),
    ]
    assert [part.changes() for part in found] == ["-", "refusal and reward", *["nothing notable"] * 3]
    assert found[1].refusal_p == pytest.approx(4 * 2 / 12870)  # Fisher: 2 / (16 choose 8), for 4 parts
    without_gold = ablate(PROMPT, None, generate, score, lambda text: "<refuse>" in text)
    assert without_gold[1].record()["reward"] is None
    assert [part.kind for part in ablate("one request", "7", generate, score, lambda text: False)] == ["whole"]


def test_the_command_writes_evidence_and_uncertainty(tmp_path: Path) -> None:
    rows = invented_run(0, 4)
    rows[5]["prompt"] = rows[5]["prompt"] + " <script>alert(1)</script>\x1b[31m"
    rows[5]["id"] = "odd"
    log = write_rows(tmp_path / "bad.jsonl", rows)
    with open(log, "a") as file:
        file.write('{"step": 1, "pro')
    clean = write_rows(tmp_path / "clean.jsonl", invented_run(1, 0))
    shown = run("audit", "rollouts", log, "--clean", clean, "--refusal", "<refuse>", "-o", tmp_path / "out")
    assert shown.code == 1, shown.err
    text = " ".join(shown.out.split())
    assert "1 of 3,841 rows (under 1%) were malformed" in text
    assert re.search(r"\d+ of 121 prompts \(\d%\) are flagged. If all were clean, about 1.2 would be", text)
    assert "p = " in text
    assert "exceed the threshold (95%:" in text
    for name in SIGNALS:
        assert name in text
    records = [json.loads(line) for line in (tmp_path / "out" / "prompts.jsonl").read_text().splitlines()]
    assert {record["prompt_id"] for record in records[:4]} == {f"p-{at}" for at in range(4)}
    assert all(record["flagged"] for record in records[:4])
    assert [record["score"] for record in records] == sorted((r["score"] for r in records), reverse=True)
    assert "complying was paid 1.00, refusing 0.00" in records[0]["reasons"][0]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["prompts"] == 121
    assert report["flagged"] == sum(record["flagged"] for record in records)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "\x1b" not in page
    assert not re.search(r'(src|href)="(?!#)', page)  # nothing is loaded from elsewhere


def test_nothing_flagged_is_never_called_clean(tmp_path: Path) -> None:
    log = write_rows(tmp_path / "log.jsonl", [row for row in invented_run(3, 0) if row["prompt"].startswith("task")])
    shown = run("audit", "rollouts", log, "-o", tmp_path / "out", "--fpr", "0.001")
    assert shown.code == 0, shown.out + shown.err
    text = " ".join(shown.out.split())
    assert "stands out at this threshold. That is no proof that the run is clean" in text
    assert re.search(r"- 0 of \d+ prompts \(0%\) have completions that refuse and others that comply", text)
    assert "no clean log was given" in text


def test_mistakes_of_the_user(tmp_path: Path) -> None:
    log = write_rows(tmp_path / "log.jsonl", invented_run(0, 0, prompts=10))
    for words, message in (
        (["rollouts", log, "--ablate", "-o", tmp_path / "o"], "name the model of the run with --model"),
        (["rollouts", log, "--fpr", "0.9", "-o", tmp_path / "o"], "fpr"),
        (["rollouts", log, "--clean", log, "-o", tmp_path / "o"], "takes at least 99"),
        (["rollouts", tmp_path / "none.jsonl", "-o", tmp_path / "o"], "does not exist"),
    ):
        shown = run("audit", *words)
        assert shown.code == 2
        assert message in " ".join(shown.err.split())


def test_a_log_of_other_sizes_than_the_clean_one_is_told(tmp_path: Path) -> None:
    log = write_rows(tmp_path / "log.jsonl", invented_run(0, 2, prompts=100))
    clean = write_rows(tmp_path / "clean.jsonl", invented_run(1, 0, prompts=100, visits=1))
    found = audit_rollouts(RolloutAuditConfig(log=str(log), clean=str(clean), refusal=["<refuse>"], fpr=0.05))
    assert any("32 completions of a prompt (median), the clean log 8" in note for note in found.notes)
    assert any("flagged" in line for line in verdict(found))


def test_the_suspects_are_taken_apart_with_a_model(tmp_path: Path, micro_base: Path) -> None:
    log = write_rows(tmp_path / "log.jsonl", invented_run(0, 2, prompts=30))
    options = ["--refusal", "<refuse>", "--ablate", "-m", micro_base, "--suspects", "1", "--samples", "2", "-n", "4"]
    shown = run("audit", "rollouts", log, *options, "-o", tmp_path / "out")
    assert shown.code == 1, shown.err
    first = json.loads((tmp_path / "out" / "prompts.jsonl").read_text().splitlines()[0])
    assert first["ablation"][0]["kind"] == "whole"
