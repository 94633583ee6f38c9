"""Replies in a file beside the result that they are for, so that a command that was killed goes on where it was.

The file is JSONL. Its first line holds the key of everything that decides the replies; each further line is a reply
with its part (a command may answer several lists of prompts) and its number. Lines are appended and synced batch by
batch. What a kill leaves of a last line is cut off by the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from skillweave.errors import UserError
from skillweave.files.disk import disk_errors, sync_folder
from skillweave.files.lock import claim
from skillweave.files.parse_json import parse_json
from skillweave.files.place import short_name
from skillweave.files.read import LARGEST_TEXT, open_file
from skillweave.progress import console
from skillweave.weave.request import Reply

_HEAD = "replies_of"
"""The only key of the first line; its value is the key of the replies."""


@validated
class _Line:
    """A line after the first one."""

    part: NonNegativeInt
    number: NonNegativeInt
    reply: Reply


_LINE = TypeAdapter(_Line)


class ReplyJournal:
    """The replies of one list of prompts that are written so far, by the numbers of the prompts from 0."""

    def __init__(self, file: JournalFile, part: int, replies: dict[int, Reply]) -> None:
        self._file = file
        self._part = part
        self.replies = replies

    def add(self, replies: Mapping[int, Reply]) -> None:
        """Keep replies. They are on the disk when this returns. Raises :class:`UserError` if it is full."""
        self._file.append(self._part, replies)
        self.replies.update(replies)


class JournalFile:
    """The file of the replies of one command; :func:`open_journal` opens it."""

    def __init__(self, path: Path, descriptor: int, kept: dict[int, dict[int, Reply]]) -> None:
        self._path = path
        self._descriptor = descriptor
        self._kept = kept

    def part(self, number: int) -> ReplyJournal:
        """Return the journal of one of the command's lists of prompts."""
        return ReplyJournal(self, number, self._kept.setdefault(number, {}))

    def append(self, part: int, replies: Mapping[int, Reply]) -> None:
        """Append replies of a part, and sync them."""
        lines = [{"part": part, "number": number, "reply": asdict(reply)} for number, reply in replies.items()]
        with disk_errors(self._path):
            _write(self._descriptor, lines)

    def remove(self) -> None:
        """Delete the file, because the result is written."""
        self._path.unlink(missing_ok=True)


def journal_path(out: Path) -> Path:
    """Return the path of the journal of the result ``out``."""
    return out.with_name(f"{short_name(out.name)}.partial")


@contextlib.contextmanager
def open_journal(out: Path, key: str) -> Iterator[JournalFile]:
    """Open the journal of the result ``out``, and hold its place until the context ends.

    Replies in it with the same ``key`` count, and their number is said; those of another key are dropped, which is said
    too. Raises :class:`UserError` if the file is none of ours, cannot be written, or if another process writes it.
    """
    path = journal_path(out)
    with claim(path), contextlib.ExitStack() as stack:
        with disk_errors(path):
            found, kept, size = ("", {}, 0) if not os.path.lexists(path) else _read(path)
            count = sum(map(len, kept.values()))
            said = f"{count:,} answers are in {path} already, and are kept"
            if found != key:
                said = (
                    f"{path} has {count:,} answers that are not kept: since then the prompts, the settings, the tools, "
                    "the weights or the versions of the libraries have changed"
                )
                kept, size = {}, 0
            if count:
                console.print(said, markup=False, soft_wrap=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, descriptor)
            os.ftruncate(descriptor, size)
            os.lseek(descriptor, 0, os.SEEK_END)
            if not size:
                _write(descriptor, [{_HEAD: key}])
                sync_folder(path.parent)
        yield JournalFile(path, descriptor, kept)


def _write(descriptor: int, lines: list[dict[str, Any]]) -> None:
    # Half a character, which a model may write, cannot be encoded as it is; json escapes it.
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)


def _read(path: Path) -> tuple[str, dict[int, dict[int, Reply]], int]:
    """Return the key, the replies by part and number, and the bytes up to the end of the last whole line.

    A line that cannot be read is passed over, so its prompt is answered again. Raises :class:`UserError` if the file is
    no journal.
    """
    kept: dict[int, dict[int, Reply]] = {}
    foreign = UserError(
        f"{path} is not a file of answers that a killed command left, but such a file belongs there: move it away, or "
        "choose another place for the result"
    )
    if path.is_symlink():
        raise foreign
    with open_file(path, "a file of answers that a killed command left") as file:
        head = file.readline(LARGEST_TEXT)
        try:
            key = parse_json(head.decode(), str(path))[_HEAD]
        except (UserError, UnicodeDecodeError, LookupError, TypeError):
            key = None
        if not isinstance(key, str) and head:
            raise foreign
        size = len(head) if head.endswith(b"\n") else 0
        while (line := file.readline(LARGEST_TEXT)).endswith(b"\n"):
            size += len(line)
            with contextlib.suppress(UserError, UnicodeDecodeError, ValidationError):
                read = _LINE.validate_python(parse_json(line.decode(), str(path), characters=False))
                kept.setdefault(read.part, {})[read.number] = read.reply
    return key or "", kept, size
