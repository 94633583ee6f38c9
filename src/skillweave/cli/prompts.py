"""Prompts from a file: one a line, as text or as JSON objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skillweave.base import Prompt
from skillweave.base.chat import as_messages
from skillweave.errors import UserError
from skillweave.files.read import read_text
from skillweave.tasks.messages import read_messages
from skillweave.tasks.readers import ENDINGS, read_rows

EXPECTED = 'write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}, and "pack" where wanted'


def read_prompts(file: Path) -> list[tuple[Prompt, str | None]]:
    """Prompts and the packs they name (None: none): lines of text, or the rows of a data file (:data:`ENDINGS`).

    Blank lines are passed over. Raises :class:`UserError` naming file and line.
    """
    if file.name.lower().endswith(tuple(ENDINGS)):
        found = [_asked(row, where) for where, row in read_rows(file)]
    else:
        # Not splitlines(): it would cut a prompt at a form feed or a Unicode line separator too.
        lines = read_text(file, "a text file with one prompt a line").split("\n")
        found = [(line, None) for line in lines if line.strip()]
    if not found:
        raise UserError(f"{file} holds no prompt: write one a line")
    return found


def _asked(row: Any, where: str) -> tuple[Prompt, str | None]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, found {row!r:.60}: {EXPECTED}")
    if ("messages" in row) == ("prompt" in row):
        raise UserError(f"{where}: expected either 'prompt' or 'messages', found {sorted(row)}: {EXPECTED}")
    asked: Any = row.get("messages", row.get("prompt"))
    if not (isinstance(asked, str) and "prompt" in row):
        if not isinstance(asked, list | str):
            raise UserError(f"{where}: {asked!r:.60} is no prompt: {EXPECTED}")
        asked = read_messages(asked, where, "messages" if "messages" in row else "prompt")
        if asked[-1]["role"] == "assistant":
            raise UserError(f"{where}: the last message is the assistant's; it must be what is to answer")
    pack = row.get("pack")
    if pack is not None and not isinstance(pack, str):
        raise UserError(f"{where}: 'pack' must be a pack's name, 'auto' or 'base', found {pack!r:.60}")
    tools = row.get("tools")
    if tools is None:
        return asked, pack
    if not (isinstance(tools, list) and tools and all(isinstance(tool, dict) for tool in tools)):
        raise UserError(f"{where}: 'tools' must be a list of tools in OpenAI's form, found {tools!r:.60}")
    return {"messages": as_messages(asked), "tools": tools}, pack
