"""Leave out the records that an audit flagged, and keep the bytes of all others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from skillweave.artefact import atomic_file, write_text
from skillweave.audit.data.read import line_digest
from skillweave.audit.rollouts.log import message_text
from skillweave.errors import UserError, shown_value
from skillweave.files.parse_json import parse_json
from skillweave.files.read import is_file, open_file, read_json_lines, split_lines
from skillweave.files.recover import settle
from skillweave.files.whole import read_whole
from skillweave.progress import share_of
from skillweave.units import human_bytes

RECORDS = "records.jsonl"
"""What an audit of data writes: a line for each record, with its place in the file."""
PROMPTS = "prompts.jsonl"
"""What an audit of rollouts writes: a line for each prompt, with its ids."""
MALFORMED = "malformed.jsonl"
"""What an audit of data writes: a line for each record that it could not read."""
DROPPED = ".dropped.jsonl"
"""Beside the cleaned data, a file with this after its name lists what was left out."""
_LONGEST_LINE = 2**26


@dataclass
class Flagged:
    """What the audits flagged: lines of the data file, ids and prompts, each with the audits that flagged it.

    - ``line_ids``, ``digests``: the ids and the bytes that an audit of data saw on the flagged lines
    - ``audited``, ``unread``: how many records each audit of data saw, and how many of them it could not read
    - ``by_prompt``: for each flagged prompt the keys by which a record can match it
    """

    lines: dict[int, list[str]] = field(default_factory=dict)
    ids: dict[str, list[str]] = field(default_factory=dict)
    prompts: dict[str, list[str]] = field(default_factory=dict)
    line_ids: dict[int, str] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    audited: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    by_prompt: list[set[str]] = field(default_factory=list)

    def join(self, other: Flagged) -> None:
        """Add what a further audit flagged."""
        flags: list[tuple[dict[Any, list[str]], dict[Any, list[str]]]]
        flags = [(self.lines, other.lines), (self.ids, other.ids), (self.prompts, other.prompts)]
        for ours, theirs in flags:
            for key, audits in theirs.items():
                ours.setdefault(key, []).extend(audits)
        self.line_ids |= other.line_ids
        self.digests |= other.digests
        self.audited |= other.audited
        self.unread |= other.unread
        self.by_prompt += other.by_prompt


@dataclass(frozen=True)
class Dropped:
    """What :func:`drop` did. ``unmatched`` are prompts that a rollout audit flagged and no record has."""

    records: int
    dropped: int
    unmatched: int
    flagged_prompts: int
    unreadable: int
    unaudited: int
    listed: Path

    def sentences(self) -> list[str]:
        """Return what a person should know: the share that was dropped, and what could not be matched."""
        said = [f"{share_of(self.dropped, self.records, 'records')} were dropped; they are listed in {self.listed}"]
        if self.unmatched:
            said.append(
                f"{share_of(self.unmatched, self.flagged_prompts, 'flagged prompts')} of the audit of rollouts belong "
                "to no record of this file, by id or by prompt: look at them in its prompts.jsonl"
            )
        if self.unaudited:
            said.append(
                f"{share_of(self.unaudited, self.records, 'records')} could not be read by the audit of the data, so "
                "nobody looked at them, and they were kept: malformed.jsonl of the audit names them"
            )
        if self.unreadable:
            said.append(
                f"{share_of(self.unreadable, self.records, 'records')} are no JSON objects, so they have no id and no "
                "prompt to compare: they were kept unless their line was flagged"
            )
        return said


def drop(data: Path, audits: Sequence[Path], out: Path) -> Dropped:
    """Write ``data`` (JSONL) to ``out`` without the flagged records, and list those in ``OUT.dropped.jsonl``.

    A record is flagged by its line (an audit of data), or by its id or its prompt (an audit of rollouts). Kept lines
    keep their bytes. Raises :class:`UserError` if an audit does not belong to the data, if nothing is flagged, or if
    nothing would be left.
    """
    if not data.name.lower().endswith(".jsonl"):
        raise UserError(f"{data}: records are dropped from a .jsonl file, a record a line: write the data as JSONL")
    listed = out.with_name(f"{out.name}{DROPPED}")
    if out.resolve() == data.resolve() or listed.resolve() == data.resolve():
        raise UserError(f"--out {out} would replace the data {data}: name a new file")
    flagged = read_flagged(audits, data)
    number = records = count = unreadable = 0
    used: set[str] = set()
    told: list[str] = []
    with atomic_file(out) as temporary:
        with open(temporary, "wb") as kept:
            for number, line in _lines(data):
                if not line.strip():
                    kept.write(line)
                    continue
                records += 1
                record = _record(line, f"{data}, line {number}")
                unreadable += record is None
                _check_line(flagged, number, line, record, data)
                why, matched = _why(flagged, number, record)
                used |= matched
                if why:
                    count += 1
                    shown = line.decode("utf-8", "replace") if record is None else record
                    told.append(json.dumps({"line": number, "flagged_by": why, "record": shown}, ensure_ascii=False))
                else:
                    kept.write(line)
        last = max(flagged.lines, default=0)
        if last > number:
            raise UserError(f"{data} ends before line {last}, which an audit flagged: name the file that was audited")
        for audit, audited in flagged.audited.items():
            if audited != records:
                raise UserError(
                    f"{data} has {records:,} records, and the audit {audit} saw {audited:,}: name the file that was "
                    "audited, or audit this one"
                )
        unmatched = sum(not used & keys for keys in flagged.by_prompt)
        if not count:
            raise UserError(f"no record of {data} was flagged: name the file that was audited, and its audits")
        if count == records:
            raise UserError(f"all {records:,} records of {data} are flagged: nothing would be left to train on")
        write_text(listed, "\n".join([*told, ""]))
    unaudited = max(flagged.unread.values(), default=0)
    return Dropped(records, count, unmatched, len(flagged.by_prompt), unreadable, unaudited, listed)


def read_flagged(audits: Sequence[Path], data: Path) -> Flagged:
    """Return what the audits in these folders flagged, of several audited files only what is about ``data``.

    Raises :class:`UserError` for a folder without an audit, and for one of other files.
    """
    found = Flagged()
    for folder in audits:
        settle(folder)
        # Several files are read, and an audit that ends meanwhile replaces the folder.
        found.join(read_whole(folder, (RECORDS, PROMPTS, MALFORMED), partial(_read_audit, folder, data)))
    return found


def _read_audit(folder: Path, data: Path) -> Flagged:
    """What the audit in one folder flagged."""
    found = Flagged()
    files = [folder / name for name in (RECORDS, PROMPTS) if is_file(folder / name)]
    if not files:
        raise UserError(
            f"--audit {folder} is no folder with {RECORDS} (of `skillweave audit data`) or {PROMPTS} (of "
            "`skillweave audit rollouts`): name the folder of an audit"
        )
    for file in files:
        is_record = file.name == RECORDS
        # Which file an audit of data is about is known when all its records are read.
        flagged: dict[str | None, list[tuple[str, dict[str, Any]]]] = {}
        counts: Counter[str | None] = Counter()
        for where, row in _rows(file):
            if not isinstance(row.get("flagged"), bool):
                raise UserError(f"{where}: expected an object with `flagged`: true or false; run the audit again")
            counts[row.get("file")] += 1
            if row["flagged"]:
                flagged.setdefault(row.get("file"), []).append((where, row))
        ours = _audited_file(folder, list(counts), data) if is_record else None
        for where, row in flagged.get(ours, []):
            _add(found, row, is_record, where, str(folder))
        if is_record and is_file(folder / MALFORMED):
            bad = sum(row.get("file") == ours for _, row in _rows(folder / MALFORMED))
            found.unread[str(folder)] = bad
            found.audited[str(folder)] = bad + counts[ours]
    return found


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects in a file of an audit, each with its place."""
    for where, row in read_json_lines(file, "the folder of an audit"):
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected an object, found {shown_value(row)}; run the audit again")
        if not isinstance(row.get("file"), str | None):
            raise UserError(f"{where}: `file` must be a text, found {shown_value(row['file'])}; run the audit again")
        yield where, row


def _audited_file(audit: Path, names: Sequence[str | None], data: Path) -> str | None:
    """The name of ``data`` among those of an audit. An audit of one file is of ``data``, whatever its name was then."""
    if len(names) == 1:
        return names[0]
    known = [name for name in names if isinstance(name, str)]
    same = [name for name in known if Path(name).resolve() == data.resolve()]
    same = same or [name for name in known if Path(name).name == data.name]
    if len(same) != 1:
        raise UserError(
            f"{audit} is an audit of {len(names):,} files, and {data} is none of them or cannot be told from "
            f"others: name one of those that were audited, such as {shown_value(known[0]) if known else 'DATA'}"
        )
    return same[0]


def _add(found: Flagged, row: dict[str, Any], is_record: bool, where: str, audit: str) -> None:
    if is_record:
        line = row.get("line")
        if isinstance(line, bool) or not isinstance(line, int) or line < 1:
            raise UserError(f"{where}: `line` must be a whole number from 1, found {shown_value(line)}")
        found.lines.setdefault(line, []).append(audit)
        if row.get("id") is not None:
            found.line_ids[line] = str(row["id"])
        if isinstance(row.get("digest"), str):
            found.digests[line] = row["digest"]
        return
    ids = [str(id_) for id_ in row.get("ids") or [row.get("prompt_id")] if id_ is not None]
    prompt = row.get("prompt")
    for id_ in ids:
        found.ids.setdefault(id_, []).append(audit)
    if isinstance(prompt, str):
        found.prompts.setdefault(prompt, []).append(audit)
    found.by_prompt.append({*(f"id:{id_}" for id_ in ids), f"prompt:{prompt}"})


def _check_line(flagged: Flagged, number: int, line: bytes, record: dict[str, Any] | None, data: Path) -> None:
    """Raise :class:`UserError` if a flagged line is another one than the audit of the data saw."""
    id_, expected = _id(record), flagged.line_ids.get(number)
    if expected is not None and id_ is not None and expected != id_:
        raise UserError(
            f"{data}, line {number}: the audit flagged the record with the id {shown_value(expected)} there, but this "
            f"one has {shown_value(id_)}: name the file that was audited, or audit this one"
        )
    if number in flagged.digests and flagged.digests[number] != line_digest(line):
        raise UserError(
            f"{data}, line {number}: the audit flagged a record there whose text was another one: name the file that "
            "was audited, or audit this one"
        )


def _id(record: dict[str, Any] | None) -> str | None:
    return None if record is None or record.get("id") is None else str(record["id"])


def _why(flagged: Flagged, number: int, record: dict[str, Any] | None) -> tuple[list[str], set[str]]:
    """The audits that flagged a record, and the keys of the prompts that it matches."""
    why = list(flagged.lines.get(number, []))
    if record is None:
        return why, set()
    id_ = _id(record)
    matched = set()
    if id_ in flagged.ids:
        why += flagged.ids[str(id_)]
        matched.add(f"id:{id_}")
    prompt = _prompt(record)
    if prompt in flagged.prompts:
        why += flagged.prompts[str(prompt)]
        matched.add(f"prompt:{prompt}")
    return list(dict.fromkeys(why)), matched


def _prompt(record: dict[str, Any]) -> str | None:
    """The prompt as the log of rollouts has it: a text, or the contents of chat messages."""
    value = record.get("prompt")
    try:
        return message_text(value, "")
    except UserError:
        return None


def _record(line: bytes, where: str) -> dict[str, Any] | None:
    try:
        value = parse_json(line.decode("utf-8-sig"), where)
    except (UnicodeDecodeError, UserError):
        return None
    return value if isinstance(value, dict) else None


def _lines(data: Path) -> Iterator[tuple[int, bytes]]:
    """The number and the bytes of each line, with its line break."""
    with open_file(data, "the data file") as file:
        for number, line in enumerate(split_lines(file, _LONGEST_LINE), 1):
            if len(line) > _LONGEST_LINE:
                raise UserError(f"{data}, line {number} is longer than {human_bytes(_LONGEST_LINE)}: split the record")
            yield number, line
