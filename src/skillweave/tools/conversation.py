"""Ask a model that has tools: every prompt is played to its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from pydantic import Field

from skillweave.errors import UserError
from skillweave.progress import bar
from skillweave.tools.call_format import CallFormat
from skillweave.tools.loop import Episode, Start, TurnLimits, play
from skillweave.tools.toolbox import Toolbox
from skillweave.tools.turn import Thoughts

if TYPE_CHECKING:
    from skillweave.base.chat import Prompt


class ConversationSettings(TurnLimits):
    """How conversations with tools are held."""

    max_tool_tokens: int = Field(default=512, ge=1, description="more of one result is cut off")
    batch_size: int = Field(default=64, ge=1, description="conversations written at once in one process")
    thoughts: Thoughts = Field(
        default="strip", description="what a model thinks in <think>...</think>: no part of a turn, or 'keep'"
    )
    instruction: str | None = Field(
        default=None,
        description="what tells the model of its tools; None: its template, else ours; '': nothing (it knows them)",
    )

    def call_format(self, tokenizer: Any, toolbox: Toolbox) -> CallFormat:
        """How a model of that tokenizer uses these tools. Raises :class:`UserError` where it has no chat template."""
        return CallFormat(
            tokenizer, toolbox, max_tool_tokens=self.max_tool_tokens, instruction=self.instruction,
            thoughts=self.thoughts,
        )  # fmt: skip


def begin(
    model: Any,
    form: CallFormat,
    prompts: Sequence[Prompt],
    *,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    rows: int | None = None,
) -> list[Start]:
    """Where the conversations on these prompts begin; the draws of number i hang on ``seed`` + i.

    ``numbers`` are those of the prompts where these are a part of what was asked; ``rows`` how many tokens there are
    (None: as many as the model's embedding has rows).
    Raises :class:`UserError` for a prompt that leaves no room in the model's context.
    """
    from skillweave.base.generate import check_has_rows, context_length

    context = context_length(model)
    held = model.get_input_embeddings().weight.shape[0] if rows is None else rows
    numbers = range(len(prompts)) if numbers is None else numbers
    starts = [Start(form.prompt_ids(prompt), seed + at) for at, prompt in zip(numbers, prompts, strict=True)]
    for number, start in zip(numbers, starts, strict=True):
        check_has_rows(form.tokenizer, start.prompt, held, f"prompt {number + 1}")
        if context is not None and len(start.prompt) >= context:
            raise UserError(
                f"prompt {number + 1} has {len(start.prompt)} tokens with what tells the model of its tools; the "
                f"model's context is {context}, answer included: shorten it, or give fewer tools"
            )
    return starts


def converse(
    model: Any, form: CallFormat, toolbox: Toolbox, starts: Sequence[Start], settings: ConversationSettings, *,
    temperature: float = 0.0, top_p: float = 1.0, model_defaults: bool = False,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext, label: str | None = None,
) -> list[Episode]:  # fmt: skip
    """Hold all conversations side by side; greedily unless ``temperature`` says otherwise, or with ``model_defaults``
    the model's own ``generation_config.json`` does.

    ``around()`` is entered around the model's calls, as autocast; ``label`` shows a progress bar.
    """
    from skillweave.base.defaults import HONOURED_WITH_TOOLS
    from skillweave.base.defaults import model_defaults as defaults_of
    from skillweave.base.generate import context_length
    from skillweave.tools.writer import Writer

    choice: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    if model_defaults:
        choice = {"temperature": 0.0, **defaults_of(model, HONOURED_WITH_TOOLS)}
    writer = Writer(model, form.tokenizer, **choice, batch_size=settings.batch_size, around=around)
    with bar(label or "", len(starts), shown=label is not None) as advance:
        return play(writer, form, toolbox, starts, settings, context_length(model), ended=advance)
