"""The answers that ``generate`` and ``eval`` keep beside their result while they write them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # these import torch, which --help must not wait for
    from skillweave.engine import LocalEngine
    from skillweave.tools.conversation import OpenTools
    from skillweave.weave.journal import ReplyJournal


@contextlib.contextmanager
def keep_replies(
    out: Path | None, engine: LocalEngine, tools: Sequence[OpenTools | None], asked: Any
) -> Iterator[Callable[[int], ReplyJournal | None]]:
    """Yield a function that gives the journal of each of the command's lists of prompts, by its number.

    Nothing is kept, so the journals are None, if the result is not written to a file (``out`` is None, or a pipe), or
    to one in a folder that takes no new files. The journals are deleted when the context ends without an error, so the
    result has to be written by then. ``tools`` and ``asked``, which is JSON-like, hold what decides the replies beside
    the engine.
    """
    from skillweave.files.disk import existing
    from skillweave.files.hashes import digest
    from skillweave.files.place import is_special, stream_of
    from skillweave.weave.journal import open_journal

    if out is None or stream_of(out) is not None or is_special(out) or not os.access(existing(out.parent), os.W_OK):
        yield lambda number: None
        return
    with open_journal(out, digest([engine.key, [_tools_key(one) for one in tools], asked])) as file:
        yield file.part
        file.remove()


def _tools_key(tools: OpenTools | None) -> Any:
    """What tells opened tools from others: their schemas, settings, and the digests of the user's own files."""
    from skillweave.tasks.with_tools import ToolUse

    if tools is None:
        return None
    named = tools.settings.tools if isinstance(tools.settings, ToolUse) else None
    return [tools.toolbox.schemas, tools.settings.model_dump(mode="json"), named.digests if named else []]
