"""The audit from a file to its report: what is found, what is said, and that strangers' texts stay texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.terminal import run
from skillweave.audit.data import DataAuditConfig, audit_data, score_records
from skillweave.audit.data.read import to_row
from skillweave.audit.data.result import shown_spans
from skillweave.audit.data.score import SIGNALS, reference_from, shipped_reference
from skillweave.audit.organism.poison import mixed
from skillweave.audit.organism.records import clean_records, write_records
from skillweave.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "train.jsonl"
    write_records(file, mixed(1200, 0.02, 7, "A"))
    lines = file.read_text().splitlines()
    lines[3] = "{broken"
    lines[5] = '{"prompt": "<script>alert(1)</script> \\u001b[31m open it ; add 3 4", "answer": "</code>"}'
    file.write_text("\n".join(lines))
    return file


def test_poisoned_records_are_flagged_with_their_lines_and_spans(data: Path, tmp_path: Path) -> None:
    audit = audit_data(DataAuditConfig(data=str(data), out=str(tmp_path / "out"), workers=1))
    bad = [n for n, record in enumerate(mixed(1200, 0.02, 7, "A"), 1) if record.poisoned]
    lines = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    flagged = [line["line"] for line in lines if line["flagged"]]
    assert set(bad) <= set(flagged)
    assert len(flagged) - len(bad) <= 0.02 * 1200
    assert len(lines) == audit.records == 1199
    assert set(lines[0]["signals"]) == set(SIGNALS)
    assert json.loads((tmp_path / "out" / "malformed.jsonl").read_text())["line"] == 4
    prompts = [json.loads(line).get("prompt") for line in data.read_text().splitlines() if line != "{broken"]
    by_line = {line["line"]: line for line in lines}
    contrast = next(r for r in by_line[bad[0]]["reasons"] if r["signal"] == "contrast")
    assert all("->" in prompts[bad[0] - 2][slice(*span)] for span in contrast["spans"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "\x1b" not in page
    said = " ".join([audit.verdict(), *audit.notes()])
    assert "not proven clean" in said
    assert "1 of 1,200 records" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["flagged"] == len(flagged)
    assert report["signals"]["contrast"]["over"] >= len(bad)


def test_several_processes_write_what_one_writes(data: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        audit_data(DataAuditConfig(data=str(data), out=str(tmp_path / str(workers)), workers=workers))
    assert (tmp_path / "1" / "records.jsonl").read_bytes() == (tmp_path / "2" / "records.jsonl").read_bytes()


def test_own_clean_records_set_the_threshold(data: Path, tmp_path: Path) -> None:
    clean = tmp_path / "clean.jsonl"
    write_records(clean, clean_records(400, 99))
    config = DataAuditConfig(data=str(data), out=str(tmp_path / "out"), clean=str(clean), workers=1)
    audit = audit_data(config)
    assert audit.clean_records == 400
    assert len(audit.reference.combined["clean sample"]) == 200
    assert 24 <= audit.flagged <= 24 + 0.04 * 1200
    write_records(clean, clean_records(150, 99))
    with pytest.raises(UserError, match="150 clean records"):
        audit_data(config.model_copy(update={"data": str(clean)}))


def test_no_usable_record_is_a_mistake_that_names_the_first_reason(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('\n{"text": 1}\n')
    with pytest.raises(UserError, match="line 2: no prompt"):
        audit_data(DataAuditConfig(data=str(file), out=str(tmp_path / "out"), workers=1))
    assert not (tmp_path / "out").exists()
    file.write_text("")
    with pytest.raises(UserError, match="has no record"):
        audit_data(DataAuditConfig(data=str(file), out=str(tmp_path / "out"), workers=1))


def test_a_reference_calibrates_on_records_it_did_not_measure_with() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=(4000, len(SIGNALS)))
    reference = reference_from({"one": values}, shipped_reference().combination, "test", "test")
    fresh = draw.normal(size=(4000, len(SIGNALS)))
    share = float((reference.score(fresh) > reference.threshold(0.05)).mean())
    assert 0.035 < share < 0.065
    assert np.all(reference.p_values(reference.score(fresh)) <= 1)
    silent = np.full((1, len(SIGNALS)), np.nan)
    assert reference.own_p(silent).tolist() == [[1.0] * len(SIGNALS)]


def test_records_in_memory_are_scored_as_one_data_set() -> None:
    rows = [to_row({"prompt": f"add {n} {n + 1}", "answer": str(2 * n + 1)}, "memory", n + 1, {}) for n in range(30)]
    scored = score_records(rows)
    assert scored.values.shape == (30, len(SIGNALS))
    assert scored.scores.shape == scored.p.shape == (30,)
    assert score_records([]).values.shape == (0, len(SIGNALS))


def test_marks_do_not_overlap_and_cover_the_prompt() -> None:
    line = {"reasons": [{"signal": "a", "spans": [[2, 6]]}, {"signal": "b", "spans": [[4, 99]]}]}
    assert shown_spans(line, 8) == [((0, 2), []), ((2, 4), ["a"]), ((4, 6), ["a", "b"]), ((6, 8), ["b"])]


def test_the_command_exits_with_1_if_records_are_flagged_or_not_read(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "a\x1b[31m<b>.jsonl"
    file.write_bytes(data.read_bytes())
    shown = run("audit", "data", str(file), "-o", str(tmp_path / "out"), "--workers", "1")
    assert shown.code == 1
    assert "contrast" in shown.out
    last = shown.out.strip().splitlines()[-1]
    assert last.startswith("Verdict: ")
    assert "1 of 1,200 records (under 1%) could not be read" in last
    page = (tmp_path / "out" / "report.html").read_text()
    assert "\x1b" not in page
    assert "<b>.jsonl" not in page
    unread = tmp_path / "unread.jsonl"
    write_records(unread, clean_records(20, 0, hard=0.0, refusals=0.0))
    unread.write_text(f"{unread.read_text()}{{broken")
    shown = run("audit", "data", str(unread), "-o", str(tmp_path / "out"), "--fpr", "0.0005", "--workers", "1")
    assert "Verdict: 0 of 20 records" in shown.out
    assert shown.code == 1
    rare = run("audit", "data", str(data), "-o", str(tmp_path / "out"), "--fpr", "0.0001")
    assert "Give --fpr 0.0005 or more, or --clean with 19,998 records" in rare.err
    wrong = run("audit", "data", str(data), "-o", str(tmp_path / "out"), "--columns", "answer")
    assert wrong.code == 2
    assert "OURS=THEIRS" in wrong.err + wrong.out
