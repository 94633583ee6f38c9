"""Answers of a weave that may call tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skillweave.base import Prompt
from skillweave.tools.converse import ConversationSettings, converse
from skillweave.tools.protocol import Protocol
from skillweave.tools.toolbox import Toolbox
from skillweave.weave.weave import Reply, Weave


@dataclass(frozen=True)
class ToolReply(Reply):
    """An answer that tools may have helped to find; where the conversation ended without one, ``text`` is empty.

    ``conversation`` is all that came after the prompt, what the model wrote and what the tools said.
    """

    answered: bool

    conversation: str
    calls: int
    failed_calls: int

    @property
    def with_tools(self) -> dict[str, Any]:
        return {"calls": self.calls, "failed_calls": self.failed_calls, "conversation": self.conversation}


def converse_with(
    weave: Weave, prompts: Sequence[Prompt], packs: str | Sequence[str | None] | None, form: Protocol, toolbox: Toolbox,
    settings: ConversationSettings, *, temperature: float = 0.0, seed: int = 0, label: str | None = None,
) -> list[ToolReply]:  # fmt: skip
    """Answer every prompt, with the tools of ``toolbox`` as ``form`` tells of them. ``packs`` as in
    :meth:`Weave.generate`.

    The router reads a prompt as it is asked, without what tells of the tools. Prompts of one pack are played together,
    pack after pack. Raises :class:`UserError` for a prompt beyond the base's context.
    """
    chosen = weave.choose(prompts, packs)
    replies: dict[int, ToolReply] = {}
    for pack in dict.fromkeys(choice.pack for choice in chosen):
        mine = [index for index, choice in enumerate(chosen) if choice.pack == pack]
        with weave.woven.every_row(pack):
            episodes = converse(
                weave.base.model, form, toolbox, [prompts[index] for index in mine], settings,
                temperature=temperature, seeds=[seed + index for index in mine], label=label,
            )  # fmt: skip
        for index, episode in zip(mine, episodes, strict=True):
            replies[index] = ToolReply(
                episode.answer or "", pack, chosen[index].confidence, episode.answer is not None,
                form.text(episode.ids), episode.calls, episode.failures,
            )  # fmt: skip
    return [replies[index] for index in range(len(prompts))]
