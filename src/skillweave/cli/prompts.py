"""Read prompts from a file, and the packs that are to answer them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from skillweave.base import Prompt
from skillweave.base.chat import as_messages
from skillweave.errors import UserError
from skillweave.files.read import read_text
from skillweave.tasks.messages import read_messages
from skillweave.tasks.readers import ENDINGS, read_rows

EXPECTED = (
    'write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}, and "pack" to choose who answers'
)


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
        prompts = [PromptRow(*_prompt_of(row, where), where) for where, row in read_rows(file)]
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
        raise UserError(f"{where}: expected either 'prompt' or 'messages', found {sorted(row)}: {EXPECTED}")
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
    pack = row.get("pack")
    if pack is not None and not isinstance(pack, str):
        raise UserError(f"{where}: 'pack' must be a pack's name, 'auto' or 'base', found {pack!r:.60}")
    tools = row.get("tools")
    if tools is None:
        return prompt, pack
    if not (isinstance(tools, list) and tools and all(isinstance(tool, dict) for tool in tools)):
        raise UserError(f"{where}: 'tools' must be a list of tools in OpenAI's form, found {tools!r:.60}")
    return {"messages": as_messages(prompt), "tools": tools}, pack
