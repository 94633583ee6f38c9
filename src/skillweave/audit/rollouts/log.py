"""Read logged rollouts: one row for each completion, as JSONL, JSON or the Parquet files that TRL writes.

The layout of a row:

    {"step": 12, "id": "a-7", "prompt": "add 3 4", "completion": "7", "reward": 1.0, "gold": "7"}

``id`` and ``gold`` may be missing. ``prompt`` and ``completion`` are texts or lists of chat messages. A folder means
all log files in it. TRL writes such a folder with ``log_completions=True``: its rows have no ``reward`` but one column
for each reward function, and the reward is then their sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skillweave.errors import UserError, nearest, shown_value
from skillweave.files.parse_json import parse_json
from skillweave.files.read import is_folder, open_file, split_lines, wide_text
from skillweave.progress import share_of
from skillweave.tasks.readers import ENDINGS, read_rows, wrapper_hint
from skillweave.units import human_bytes

LONGEST_LINE = 2**24
"""Most bytes of a line of a log; a longer line is skipped and counted."""
MOST_SHOWN = 5
"""So many malformed rows are described; the others are only counted."""

LARGEST = 1e12
"""The largest step and reward: sums and squares of larger ones would not be exact."""

_TRL_COLUMNS = ("step", "prompt", "completion", "advantage", "id", "gold", "images")
_ENDINGS = tuple(ending for ending in ENDINGS if not ending.startswith((".csv", ".tsv")))


@dataclass(frozen=True)
class Rollout:
    """One completion of one prompt. ``reward`` is NaN if the log has none."""

    step: int
    prompt: str
    completion: str
    reward: float
    id: str | None = None
    gold: str | None = None


@dataclass
class LogNotes:
    """What a reader found wrong with a log, counted while it reads."""

    rows: int = 0
    malformed: int = 0
    without_reward: int = 0
    examples: list[str] = field(default_factory=list)
    summed: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return a sentence for each kind of problem; no sentence if there was none."""
        said = []
        if self.malformed:
            shown = "; ".join(self.examples)
            said.append(f"{share_of(self.malformed, self.rows, 'rows')} were malformed and are left out: {shown}")
        if self.without_reward:
            said.append(
                f"{share_of(self.without_reward, self.rows, 'rows')} have no reward (missing, null or not finite): "
                "they count for refusals, not for rewards"
            )
        if self.summed:
            said.append(f"the rows have no `reward`, so the sum of these columns was taken: {', '.join(self.summed)}")
        return said


def read_log(path: str | Path, notes: LogNotes) -> Iterator[Rollout]:
    """Yield the rollouts of a log, one at a time; ``notes`` counts what is wrong with it.

    A row that cannot be read is skipped and counted. Raises :class:`UserError` if the log cannot be opened, or if it
    has no row that can be read.
    """
    for file in log_files(path):
        for row in _located_rows(file, notes):
            notes.rows += 1
            try:
                yield _rollout(*row, notes)
            except UserError as error:
                _malformed(notes, str(error))
    if notes.rows == notes.malformed:
        why = f" ({notes.examples[0]})" if notes.examples else ""
        raise UserError(
            f"{path} holds no rollout that can be read{why}: each row needs step, prompt, completion and reward"
        )


def log_files(path: str | Path) -> list[Path]:
    """Return the files of a log: the file itself, or the log files of a folder in the order of their names."""
    if not is_folder(path):
        return [Path(path)]
    files = sorted(file for file in Path(path).iterdir() if file.name.lower().endswith(_ENDINGS))
    if not files:
        raise UserError(f"{path} is a folder without a log: name a .jsonl, .json or .parquet file, or a folder of them")
    return files


def _located_rows(file: Path, notes: LogNotes) -> Iterator[tuple[str, Any]]:
    if file.name.lower().endswith(".jsonl"):
        yield from _json_lines(file, notes)
    else:
        yield from read_rows(file)


def _json_lines(file: Path, notes: LogNotes) -> Iterator[tuple[str, Any]]:
    """The rows of a JSONL file. A damaged line is counted: a run that was killed often leaves half of one."""
    with open_file(file, "a log of rollouts (JSONL)") as opened:
        for number, line in enumerate(split_lines(opened, LONGEST_LINE), 1):
            where = f"{file}, line {number}"
            if number == 1 and (wide := wide_text(line)):
                raise UserError(f"{file}: {wide}")
            if len(line) > LONGEST_LINE:
                notes.rows += 1
                _malformed(notes, f"{where}: longer than {human_bytes(LONGEST_LINE)}")
                continue
            if not line.strip():
                continue
            try:
                value = parse_json(line.decode("utf-8-sig"), where)
            except (UnicodeDecodeError, UserError) as error:
                notes.rows += 1
                _malformed(notes, f"{where}: not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error))
                continue
            yield where, value


def _malformed(notes: LogNotes, problem: str) -> None:
    notes.malformed += 1
    if len(notes.examples) < MOST_SHOWN:
        notes.examples.append(problem)


def _rollout(where: str, row: Any, notes: LogNotes) -> Rollout:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with keys, found {shown_value(row)}")
    for key in ("prompt", "completion"):
        if key not in row:
            raise UserError(f"{where}: the key '{key}' is missing; {nearest(key, map(str, row))}{wrapper_hint(row)}")
    step, id_, gold = row.get("step"), row.get("id"), row.get("gold")
    if isinstance(step, bool) or not isinstance(step, int | float) or not 0 <= step <= LARGEST or step != int(step):
        raise UserError(f"{where}: 'step' must be a whole number from 0 to {LARGEST:g}, found {shown_value(step)}")
    prompt, completion = message_text(row["prompt"], where), message_text(row["completion"], where)
    reward = _reward(row, where, notes)
    return Rollout(
        step=int(step),
        prompt=prompt,
        completion=completion,
        reward=reward,
        id=None if id_ is None else str(id_),
        gold=None if gold is None else gold if isinstance(gold, str) else str(gold),
    )


def _reward(row: dict[str, Any], where: str, notes: LogNotes) -> float:
    if "reward" in row or not (columns := _reward_columns(row)):
        values: Sequence[Any] = [row.get("reward")]
    else:
        values = [row[name] for name in columns]
        notes.summed += [name for name in columns if name not in notes.summed]
    wrong = next((value for value in values if isinstance(value, bool | str | list | dict)), None)
    if wrong is not None:
        raise UserError(f"{where}: 'reward' must be a number, found {shown_value(wrong)}")
    # TRL writes NaN for a reward function that does not apply to a prompt.
    numbers = [value for value in values if value is not None and -math.inf < value < math.inf]
    if any(abs(value) > LARGEST for value in numbers):
        raise UserError(f"{where}: 'reward' must lie between -{LARGEST:g} and {LARGEST:g}")
    if not numbers:
        notes.without_reward += 1
        return math.nan
    return float(sum(numbers))


def _reward_columns(row: dict[str, Any]) -> list[str]:
    """The names of TRL's reward columns: all numbers that are none of its other columns."""
    return [
        name
        for name, value in row.items()
        if name not in _TRL_COLUMNS and isinstance(value, int | float) and not isinstance(value, bool)
    ]


def message_text(value: Any, where: str) -> str:
    """Return a prompt or completion as one text: the contents of chat messages, joined by line feeds."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        return "\n".join(_content(message.get("content"), where) for message in value)
    raise UserError(f"{where}: expected a text or a list of chat messages, found {shown_value(value)}")


def _content(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):  # parts of a message, some of which are images
        return "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    raise UserError(f"{where}: the content of a message must be a text, found {shown_value(content)}")
