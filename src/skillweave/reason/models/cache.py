"""A persistent cache of model answers: a run that was killed pays for nothing twice.

SQLite runs in the thread of the event loop. A read or a write takes well under a millisecond, and a thread of its own
would only add the hand-over. Every answer is committed before it is used.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

from skillweave.errors import UserError
from skillweave.files.disk import make_folders
from skillweave.files.hashes import digest
from skillweave.reason.models.model import Completion, Model, ModelCall

_VERSION = 1
_APPLICATION = 0x53575243
"""Marks the file as ours (SQLite's ``application_id``)."""
_PATIENCE = 30.0
"""Seconds to wait for another process that writes."""
_TABLE = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY,
    text TEXT NOT NULL,
    ended TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
) WITHOUT ROWID
"""


class AnswerCache:
    """The answers in one SQLite file, which several processes may share. Use it as a context manager.

    Raises :class:`UserError` for a file that is not such a cache, is damaged or comes from a newer version; it is never
    overwritten.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        make_folders(self.path.parent)
        try:
            self._connection = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._connection.close()
            raise self._unusable(error) from error
        except UserError:
            self._connection.close()
            raise

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def get(self, key: str) -> Completion | None:
        """The answer of that key, or None."""
        try:
            row = self._connection.execute(
                "SELECT text, ended, prompt_tokens, completion_tokens FROM answers WHERE key = ?", (key,)
            ).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return None if row is None else Completion(*row)

    def put(self, key: str, answer: Completion) -> None:
        """Write an answer, in a transaction of its own. An answer that is there already stays."""
        # A lone surrogate, which a model may write, is no valid UTF-8.
        text = answer.text.encode("utf-8", "replace").decode()
        row = (key, text, answer.ended, answer.prompt_tokens, answer.completion_tokens)
        try:
            self._connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _prepare(self) -> None:
        """Check that the file is ours, or make it so if it is new."""
        run = self._connection.execute
        application, version = run("PRAGMA application_id").fetchone()[0], run("PRAGMA user_version").fetchone()[0]
        is_new = not run("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if is_new and not application:
            run("PRAGMA journal_mode = WAL")
            run("BEGIN IMMEDIATE")
            # Another process may have made it meanwhile.
            if not run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                run(_TABLE)
                run(f"PRAGMA application_id = {_APPLICATION}")
                run(f"PRAGMA user_version = {_VERSION}")
            run("COMMIT")
        elif application != _APPLICATION:
            raise UserError(f"{self.path} is a database of another program: name another place for the run")
        elif version != _VERSION:
            raise UserError(
                f"{self.path} was written by another version of SkillWeave (format {version}, this one reads "
                f"{_VERSION}): name another place for the run"
            )
        run("PRAGMA synchronous = FULL")

    def _unusable(self, error: sqlite3.Error) -> UserError:
        if "full" in str(error):
            return UserError(
                f"{self.path}: the disk is full. Nothing that was written is lost: free some space, and run it again."
            )
        return UserError(
            f"{self.path} cannot be used as a cache of answers ({error}): if it is damaged, delete it, and its answers "
            f"are asked for again"
        )


class CachedModel:
    """A model whose answers are kept. Equal calls in flight share one request.

    ``paid`` counts the calls that the model itself answered.
    """

    def __init__(self, model: Model, cache: AnswerCache) -> None:
        self._model = model
        self._cache = cache
        self._in_flight: dict[str, asyncio.Task[Completion]] = {}
        self.paid = 0

    @property
    def identity(self) -> str:
        """That of the model behind the cache."""
        return self._model.identity

    async def complete(self, call: ModelCall) -> Completion:
        """The answer from the cache, or else from the model; written before it is returned."""
        key = digest([self.identity, call.messages, call.temperature, call.max_tokens, call.seed])
        known = self._cache.get(key)
        if known is not None:
            return known
        if key not in self._in_flight:
            task = asyncio.ensure_future(self._ask(key, call))
            self._in_flight[key] = task
            task.add_done_callback(lambda _: self._in_flight.pop(key, None))
        # Shielded, because a caller that is cancelled must not take the answer from the others, or lose what is paid.
        return await asyncio.shield(self._in_flight[key])

    async def close(self) -> None:
        """Close the model; the cache belongs to the caller."""
        await self._model.close()

    async def _ask(self, key: str, call: ModelCall) -> Completion:
        answer = await self._model.complete(call)
        self.paid += 1
        self._cache.put(key, answer)
        return answer
