"""Flagged records are left out; all other bytes stay; what does not fit together is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.terminal import run
from skillweave.audit.data.read import line_digest
from skillweave.audit.repair import drop as drop_module
from skillweave.audit.repair.drop import drop
from skillweave.errors import UserError

LINES = [
    b'{"id": "a",  "prompt": "one"}\r\n',
    b"\n",
    b'{"id": "b", "prompt": [{"role": "user", "content": "two"}]}\r',
    b"not json\n",
    b'{"prompt": "three", "answer": "\xc3\xa9"}\n',
    b'{"id": "d", "prompt": "four"}',
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data.jsonl").write_bytes(b"".join(LINES))
    return tmp_path / "data.jsonl"


def audit(folder: Path, name: str, *rows: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_records_are_found_by_line_id_and_prompt_and_the_rest_keeps_its_bytes(data: Path, tmp_path: Path) -> None:
    of_data = audit(
        tmp_path / "a", "records.jsonl",
        {"line": 1, "id": "a", "flagged": True, "score": 3}, {"line": 3, "id": "b", "flagged": False, "score": 1},
    )  # fmt: skip
    of_rollouts = audit(
        tmp_path / "b", "prompts.jsonl",
        {"prompt_id": "a", "ids": ["a"], "prompt": "other words", "flagged": True},
        {"prompt_id": None, "ids": [], "prompt": "two", "flagged": True},
        {"prompt_id": "d", "prompt": "four", "flagged": False},
        {"prompt_id": "z", "ids": ["z"], "prompt": "gone", "flagged": True},
    )  # fmt: skip
    out = tmp_path / "cleaned.jsonl"
    shown = run("audit", "drop", data, "--audit", of_data, "--audit", of_rollouts, "-o", out)
    assert shown.code == 0, shown.err
    assert out.read_bytes() == b"".join(LINES[at] for at in (1, 3, 4, 5))
    text = " ".join(shown.out.split())
    assert "2 of 5 records (40%) were dropped" in text
    assert "1 of 3 flagged prompts (33%) of the audit of rollouts belong to no record" in text
    assert "1 of 5 records (20%) are no JSON objects" in text
    listed = [json.loads(line) for line in (tmp_path / "cleaned.jsonl.dropped.jsonl").read_text().splitlines()]
    assert [(row["line"], row["flagged_by"]) for row in listed] == [
        (1, [str(of_data), str(of_rollouts)]),
        (3, [str(of_rollouts)]),
    ]
    assert listed[0]["record"] == {"id": "a", "prompt": "one"}


def test_an_audit_of_data_is_of_one_file_as_it_was(data: Path, tmp_path: Path) -> None:
    folder, other, out = tmp_path / "both", tmp_path / "both" / "b.jsonl", tmp_path / "out.jsonl"
    folder.mkdir()
    other.write_bytes(LINES[5] + b"\n" + LINES[0] + b"\xff\n")
    lines = [(data, 1, False, 0), (data, 5, True, 4), (other, 1, True, 5), (other, 2, False, 0)]
    rows = [
        {"file": str(file), "line": line, "flagged": flagged, "digest": line_digest(LINES[at])}
        for file, line, flagged, at in lines
    ]
    of_both = audit(tmp_path / "audit", "records.jsonl", *rows)
    bad = [{"file": str(file), "line": 9, "reason": "x"} for file in (data, data, data, other)]
    audit(of_both, "malformed.jsonl", *bad)
    done = drop(data, [of_both], out)
    assert out.read_bytes() == b"".join(LINES[at] for at in (0, 1, 2, 3, 5))
    assert "3 of 5 records (60%) could not be read by the audit" in " ".join(done.sentences())
    other.write_bytes(other.read_bytes() + b"{}\n{}\n")
    with pytest.raises(UserError, match=r"b.jsonl has 5 records, and the audit .* saw 3"):
        drop(other, [of_both], out)
    data.write_bytes(data.read_bytes().replace(b"three", b"there"))
    with pytest.raises(UserError, match="line 5: the audit flagged a record there whose text was another one"):
        drop(data, [of_both], out)
    with pytest.raises(UserError, match=r"is an audit of 2 files, and .* is none of them"):
        drop(tmp_path / "c.jsonl", [of_both], out)
    inside = run("audit", "drop", data, "--audit", of_both, "-o", of_both / "records.jsonl")
    assert "is inside the audit" in inside.err
    stream = run("audit", "drop", data, "--audit", of_both, "-o", "/dev/stdout")
    assert "beside which OUT.dropped.jsonl is written" in stream.err


def test_an_audit_that_is_replaced_meanwhile_is_read_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = [{"file": "old.jsonl", "line": line, "flagged": line == 1} for line in (1, 3, 5)]
    folder = audit(tmp_path / "audit", "records.jsonl", *old)
    named = drop_module._audited_file

    def then_replaced(where: Path, names: list[str | None], of: Path) -> str | None:
        name = named(where, names, of)
        if name == "old.jsonl":
            audit(folder, "records.jsonl", {"file": "data.jsonl", "line": 5, "flagged": True})
        return name

    monkeypatch.setattr(drop_module, "_audited_file", then_replaced)
    assert drop_module.read_flagged([folder], data).lines == {5: [str(folder)]}


def test_what_does_not_fit_together_writes_nothing(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "cleaned.jsonl"
    everything = [{"line": line, "flagged": True} for line in (1, 3, 4, 5, 6)]
    cases = [
        ([{"line": 9, "flagged": True}], "ends before line 9"),
        ([{"line": 1, "id": "x", "flagged": True}], "line 1: the audit flagged the record with the id 'x'"),
        ([{"line": 1, "flagged": False}], "no record of .* was flagged"),
        (everything, "all 5 records .* nothing would be left"),
        ([{"line": 0, "flagged": True}], "`line` must be a whole number from 1, found 0"),
        ([{"line": 1}], "line 1: expected an object with `flagged`"),
        ([{"line": 1, "file": ["x"], "flagged": True}], r"line 1: `file` must be a text, found \['x'\]"),
    ]
    for rows, message in cases:
        with pytest.raises(UserError, match=message):
            drop(data, [audit(tmp_path / "audit", "records.jsonl", *rows)], out)
        assert not out.exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["audit", "data.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty is no folder with records.jsonl"):
        drop(data, [tmp_path / "empty"], out)
    with pytest.raises(UserError, match="would replace the data"):
        drop(data, [tmp_path / "audit"], data)
    with pytest.raises(UserError, match="write the data as JSONL"):
        drop(tmp_path / "data.csv", [tmp_path / "audit"], out)
