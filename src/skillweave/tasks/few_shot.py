"""Few-shot prompts: solved prompts of the train split as earlier turns of the conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from skillweave.base.chat import Prompt, as_messages
from skillweave.errors import UserError
from skillweave.tasks.task import Entry, Task


def draw_examples(task: Task, count: int, seed: int) -> list[Entry]:
    """``count`` train entries with a gold answer, drawn with ``seed``, and one spare entry if there are enough.

    The spare replaces an example that is the same as the prompt it would precede. Raises :class:`UserError` if there
    are too few.
    """
    solved = [entry for entry in task.distinct("train") if entry.answer is not None]
    if len(solved) < count:
        raise UserError(
            f"--few-shot {count}: of the {task.sizes['train']} train examples of task '{task.name}' {len(solved)} have "
            "an answer that could be shown: add rows with an 'answer', or set a smaller number"
        )
    return Random(seed).sample(solved, min(len(solved), count + 1))


def ask_with(examples: list[Entry], count: int) -> Callable[[Entry], Prompt]:
    """A function from an entry to its prompt with ``count`` of the examples before it, never the same prompt."""

    def ask(entry: Entry) -> Prompt:
        others = [one for one in examples if one.id != entry.id and one.prompt != entry.prompt][:count]
        if len(others) < count:
            raise UserError(
                f"--few-shot {count}: without the prompt that is asked only {len(others)} train examples are left to "
                "show: add some, or set a smaller number"
            )
        return with_examples(entry.prompt, others)

    return ask


def with_examples(prompt: Prompt, examples: list[Entry]) -> Prompt:
    """The prompt with solved examples before it; each example is a turn of the user and one of the assistant.

    The prompt's own system messages stay in front. System messages of the examples are left out.
    """
    messages = as_messages(prompt)
    first = next((at for at, message in enumerate(messages) if message["role"] != "system"), len(messages))
    turns: list[dict[str, Any]] = []
    for example in examples:
        turns += [message for message in as_messages(example.prompt) if message["role"] != "system"]
        answer: Any = example.answer
        turns.append(dict(answer) if isinstance(answer, Mapping) else {"role": "assistant", "content": answer})
    longer: Any = [*messages[:first], *turns, *messages[first:]]
    return {**prompt, "messages": longer} if isinstance(prompt, Mapping) else longer
