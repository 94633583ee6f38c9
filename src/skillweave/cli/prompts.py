"""Read prompts from a file, and the packs that are to answer them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from skillweave.base import Prompt
from skillweave.base.chat import as_messages
from skillweave.errors import UserError
from skillweave.files.read import read_text
from skillweave.tasks.messages import read_messages, read_tools
from skillweave.tasks.readers import ENDINGS, read_rows, say_unread_keys, wrapper_hint
from skillweave.tasks.row_forms import with_system

EXPECTED = (
    'write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}, and "pack" to choose who answers'
)
_KEYS = {"prompt", "messages", "system", "tools", "pack"}


class PromptRow(NamedTuple):
    """A prompt of a file, the pack that its row names, or None, and the file and line of the row."""

    prompt: Prompt
    pack: str | None
    where: str


def read_prompts(file: Path) -> list[PromptRow]:
    """The prompts of a file, with the packs that its rows name.

    A data file (:data:`ENDINGS`) holds one prompt in a row, any other file one in a line; blank lines are skipped.
    Raises :class:`UserError` that names the file and the line.
    """
    if file.name.lower().endswith(tuple(ENDINGS)):
        prompts, unread = [], Counter[str]()
        for where, row in read_rows(file):
            prompts.append(PromptRow(*_prompt_of(row, where), where))
            unread.update(row.keys() - _KEYS)
        say_unread_keys(file, unread, len(prompts))
    else:
        # str.splitlines() would also split a prompt at a form feed or a Unicode line separator.
        lines = read_text(file, "a text file with one prompt a line").split("\n")
        prompts = [PromptRow(line, None, f"{file}, line {at}") for at, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UserError(f"{file} holds no prompt: write one in each line")
    return prompts


def _prompt_of(row: Any, where: str) -> tuple[Prompt, str | None]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, found {row!r:.60}: {EXPECTED}")
    if ("messages" in row) == ("prompt" in row):
        raise UserError(
            f"{where}: expected either 'prompt' or 'messages', found {sorted(row)}: {EXPECTED}{wrapper_hint(row)}"
        )
    prompt: Any = row.get("messages", row.get("prompt"))
    if not (isinstance(prompt, str) and "prompt" in row):
        if not isinstance(prompt, list | str):
            raise UserError(f"{where}: {prompt!r:.60} is no prompt: {EXPECTED}")
        prompt = read_messages(prompt, where, "messages" if "messages" in row else "prompt")
        if prompt[-1]["role"] == "assistant":
            raise UserError(
                f"{where}: the last message is the assistant's: end with the message that is to be answered"
            )
    elif not prompt.strip():
        raise UserError(f"{where}: the prompt is empty: give it a text, or remove the row")
    prompt = with_system(prompt, row.get("system") or None, where)
    pack = row.get("pack")
    if pack is not None and not isinstance(pack, str):
        raise UserError(f"{where}: 'pack' must be a pack's name, 'auto' or 'base', found {pack!r:.60}")
    tools = row.get("tools")
    if tools is None:
        return prompt, pack
    if tools == []:
        raise UserError(f"{where}: 'tools' must be a list of at least one tool: name one, or remove the key")
    return {"messages": as_messages(prompt), "tools": read_tools(tools, where)}, pack
