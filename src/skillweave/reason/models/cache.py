"""A file of model answers, so that a run that was killed resumes and pays for nothing twice.

The file is an SQLite database. Each answer is written in a transaction of its own before it is used, so a kill loses
none. The disk is not waited for, which would take forty times as long: a power cut may lose the latest answers, but it
does not damage the file. The calls to SQLite run in the thread of the event loop: each takes about a tenth of a
millisecond, far less than the answer of a model, and a second thread would need a lock around them for no gain.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from skillweave.artefact import disk_errors
from skillweave.errors import UserError
from skillweave.files.disk import make_folders
from skillweave.files.read import open_file
from skillweave.reason.models.model import Completion, Model, ModelCall
from skillweave.terminal import one_line

VERSION = 1
"""The newest layout of the file that this program reads."""
_OURS = 0x5357_4143
"""SQLite's ``application_id`` of our files ("SWAC"): it tells them from the databases of other programs."""
_SMALLEST = 512
"""Bytes of the smallest database."""
_PATIENCE = 30.0
"""Seconds that a write waits while another process writes."""
_SCHEMA = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY,
    text TEXT NOT NULL,
    ended TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
) WITHOUT ROWID"""


def call_key(identity: str, call: ModelCall) -> str:
    """The digest of all that decides an answer: the model and the call."""
    parts = [identity, call.messages, call.temperature, call.max_tokens, call.seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class AnswerCache:
    """The answers in one file, which is made if it does not exist. Several processes may use it at once.

    A file that is damaged, that a newer skillweave wrote or that is none of ours is a :class:`UserError`; it is never
    overwritten.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()  # SQLite gives a meaning to some relative names, such as ":memory:"
        with disk_errors(self.path):
            make_folders(self.path.parent)
            if self.path.exists():
                self._check_size()
        with self._errors():
            # Without an isolation level, each statement is a transaction of its own.
            self._file = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """How many answers the file holds."""
        return self._rows("SELECT count(*) FROM answers")[0][0]

    def get(self, key: str) -> Completion | None:
        """The answer with that key, or None."""
        rows = self._rows("SELECT text, ended, prompt_tokens, completion_tokens FROM answers WHERE key = ?", key)
        if not rows:
            return None
        text, ended, prompt, completion = rows[0]
        if not (isinstance(text, str) and ended in ("stop", "length") and isinstance(prompt + completion, int)):
            raise self._damaged("an answer has values of the wrong kind")
        return Completion(text, ended, prompt, completion)

    def put(self, key: str, answer: Completion) -> Completion:
        """Store an answer, and return the one that is stored: another process may have been faster."""
        text = answer.text.encode("utf-8", "replace").decode()  # a model's text may hold half a character
        values = (key, text, answer.ended, answer.prompt_tokens, answer.completion_tokens)
        self._rows("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", *values)
        return self.get(key) or answer

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _prepare(self) -> None:
        """Check that the file is ours, or make it so if it is empty."""
        if self._is_empty():
            # The write-ahead log lets another process read while this one writes. Some file systems cannot have it.
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("BEGIN IMMEDIATE")
            if self._is_empty():  # no other process was faster
                self._file.execute(_SCHEMA)
                self._file.execute(f"PRAGMA application_id = {_OURS}")
                self._file.execute(f"PRAGMA user_version = {VERSION}")
            self._file.execute("COMMIT")
        with_log = self._file.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        # Without the log, a power cut could damage the file if the disk were not waited for.
        self._file.execute(f"PRAGMA synchronous = {'NORMAL' if with_log else 'FULL'}")
        if self._number("application_id") != _OURS:
            raise UserError(
                f"{self.path} is an SQLite database of another program, and is not overwritten: name another file for "
                "the answers of models"
            )
        version = self._number("user_version")
        if version > VERSION:
            raise UserError(
                f"{self.path} has version {version}; this skillweave reads up to {VERSION}. Upgrade skillweave, or "
                "name another file."
            )
        # Damage is found before anything is paid for, and nothing is written into a damaged file. The check reads the
        # whole file, at about a gigabyte in a second.
        problem = self._rows("PRAGMA quick_check(1)")[0][0]
        if problem != "ok":
            raise self._damaged(one_line(problem))

    def _check_size(self) -> None:
        """Raise :class:`UserError` for a file of a few bytes, because SQLite takes some of them for empty databases.

        A file without any bytes is left by a process that was killed when it had just made the file.
        """
        with open_file(self.path, "a file for the answers of models") as file:
            size = len(file.read(_SMALLEST))
        if 0 < size < _SMALLEST:
            raise UserError(
                f"{self.path} is too short for a file of answers ({size} of at least {_SMALLEST} bytes), and is not "
                "overwritten: name another file for the answers of models"
            )

    def _is_empty(self) -> bool:
        return self._number("application_id") == 0 and not self._rows("SELECT 1 FROM sqlite_master LIMIT 1")

    def _number(self, pragma: str) -> int:
        return self._file.execute(f"PRAGMA {pragma}").fetchone()[0]

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with self._errors():
            return self._file.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into sentences that name the file and what to do."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                why = "no space is left on the disk. All earlier answers are kept: free some space, and start again."
            elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
                why = f"it cannot be written ({error}). Change its permissions, or name another file."
            elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                why = f"another process has held it for {_PATIENCE:g} seconds. End that process, or name another file."
            elif code == sqlite3.SQLITE_IOERR:
                why = f"the disk could not be read or written ({error}). Check the disk, or name another file."
            elif code == sqlite3.SQLITE_NOTADB:
                why = "it is not a file of answers, and is not overwritten. Name another file."
            elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR):
                raise self._damaged(str(error)) from error
            else:
                raise
            raise UserError(f"{self.path}, the answers of models: {why}") from error

    def _damaged(self, why: str) -> UserError:
        return UserError(
            f"{self.path}, the answers of models: the file is damaged ({why}). Move it away to start with an empty "
            "one: the answers in it are then paid for again."
        )


@dataclass
class _Request:
    """A request in flight, and how many callers wait for it."""

    task: asyncio.Task[Completion]
    waiting: int = 0


class CachedModel:
    """A model whose answers are kept in a file. Equal calls that are in flight at once share one request.

    - ``hits``: calls that needed no request of their own
    - ``misses``: calls that made a request
    - ``paid``: requests that the model answered
    """

    def __init__(self, model: Model, cache: AnswerCache) -> None:
        self.hits = 0
        self.misses = 0
        self.paid = 0
        self._model = model
        self._cache = cache
        self._requests: dict[str, _Request] = {}

    @property
    def identity(self) -> str:
        """That of the model itself."""
        return self._model.identity

    async def complete(self, call: ModelCall) -> Completion:
        """The stored answer, or the model's, which is stored first."""
        key = call_key(self.identity, call)
        request = self._requests.get(key)
        if request is None:
            stored = self._cache.get(key)
            if stored is not None:
                self.hits += 1
                return stored
            self.misses += 1
            request = self._requests[key] = _Request(asyncio.create_task(self._pay(key, call)))
        else:
            self.hits += 1
        request.waiting += 1
        try:
            # Shielded, because another caller may wait for the same request.
            return await asyncio.shield(request.task)
        finally:
            request.waiting -= 1
            if request.waiting == 0 and not request.task.done():
                self._drop(key, request)

    async def close(self) -> None:
        """Give up what is in flight, and close the model; the cache stays open."""
        for key, request in list(self._requests.items()):
            self._drop(key, request)
        await self._model.close()

    async def _pay(self, key: str, call: ModelCall) -> Completion:
        try:
            answer = await self._model.complete(call)
            self.paid += 1
            return self._cache.put(key, answer)
        finally:
            if asyncio.current_task() is getattr(self._requests.get(key), "task", None):
                del self._requests[key]

    def _drop(self, key: str, request: _Request) -> None:
        """Give up a request that nobody waits for any more; an equal call that comes later makes a new one."""
        del self._requests[key]
        request.task.cancel()
