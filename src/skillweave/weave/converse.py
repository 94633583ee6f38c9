"""Answers of a weave that may call tools."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from skillweave.base import Prompt
from skillweave.base.defaults import generating_as
from skillweave.base.generate import NoProbabilities
from skillweave.tools.call import TOOL
from skillweave.tools.conversation import ConversationSettings, begin, converse
from skillweave.tools.loop import Start
from skillweave.tools.toolbox import Toolbox
from skillweave.weave.weave import Reply, Weave, cannot_answer


@dataclass(frozen=True)
class ToolReply(Reply):
    """An answer that tools may have helped to find; where the conversation ended without one, ``text`` is empty.

    ``way`` is what came after the prompt and before the last turn, ``last`` that turn as the model wrote it.
    ``other_forms`` of its calls were written in another form than the model was told.
    """

    way: str
    last: str
    calls: int
    failed_calls: int
    other_forms: int = 0

    @property
    def answer(self) -> str | None:
        return self.text if self.ended == "answer" else None

    @property
    def record(self) -> dict[str, Any]:
        told = {"ended": self.ended, "calls": self.calls, "failed_calls": self.failed_calls}
        told["other_forms"] = self.other_forms
        return {**told, "conversation": self.way + self.last}


def converse_with(
    weave: Weave, prompts: Sequence[Prompt], packs: str | Sequence[str | None] | None, toolbox: Toolbox,
    use: ConversationSettings, *,
    temperature: float = 0.0, top_p: float = 1.0, seed: int = 0, model_defaults: bool = False,
    label: str | None = None,
) -> list[ToolReply]:  # fmt: skip
    """Answer every prompt, with the tools of ``toolbox``. ``packs`` as in :meth:`Weave.generate`, ``model_defaults`` as
    in :class:`~skillweave.base.Sampling`.

    The router reads a prompt as it is asked, without what tells of the tools. Prompts of one pack are played together,
    pack after pack. Raises :class:`UserError` for a base without a chat template, and for a prompt beyond its context.
    """
    model, chosen = weave.base.model, weave.choose(prompts, packs)
    named = list(dict.fromkeys(route.pack for route in chosen))
    forms = {pack: use.call_format(weave.voice(pack).tokenizer, toolbox) for pack in named}
    starts: dict[int, Start] = {}
    rows = {pack: [index for index, route in enumerate(chosen) if route.pack == pack] for pack in named}
    for pack, mine in rows.items():  # all are begun first: a prompt that is too long is told before hours of play
        asked = [prompts[index] for index in mine]
        begun = begin(model, forms[pack], asked, seed=seed, numbers=mine, rows=weave.voice(pack).rows)
        starts |= zip(mine, begun, strict=True)
    replies: dict[int, ToolReply] = {}
    for pack, mine in rows.items():
        form = forms[pack]
        own = weave.voice(pack).generation
        try:
            with weave.packed_model.every_row(pack), nullcontext() if own is None else generating_as(model, own):
                episodes = converse(
                    model, form, toolbox, [starts[index] for index in mine], use, temperature=temperature, top_p=top_p,
                    model_defaults=model_defaults, label=label,
                )  # fmt: skip
        except NoProbabilities as error:
            raise cannot_answer(pack, error) from error
        for index, episode in zip(mine, episodes, strict=True):
            assert episode.ended is not None
            turn = max((at + 1 for at, writer in enumerate(episode.writers) if writer == TOOL), default=0)
            replies[index] = ToolReply(
                episode.answer or "", pack, chosen[index].confidence, episode.ended, form.text(episode.ids[:turn]),
                form.text(episode.ids[turn:]), episode.calls, episode.failures, episode.other_forms,
            )  # fmt: skip
    return [replies[index] for index in range(len(prompts))]
