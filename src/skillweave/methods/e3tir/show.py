"""A group of conversations as a tree that can be read."""

from __future__ import annotations

from collections.abc import Callable

from rich.text import Text
from rich.tree import Tree

from skillweave.base.chat import as_messages
from skillweave.methods.e3tir.rollouts import Group, Member
from skillweave.terminal import printable
from skillweave.tools.call import TOOL

_LONGEST = 400
"""Characters of a piece that are shown."""


def group_tree(group: Group, text: Callable[[list[int]], str]) -> Tree:
    """The prompt, the policy's own conversations below it, and below each anchor what went on from there.

    ``text`` turns tokens into text. What a tool said is dim, what an expert wrote is in italics. Nothing in a text is
    read as a mark, and control characters are left out: a model or a tool cannot steer the terminal.
    """
    prompt, answer = as_messages(group.entry.prompt)[-1]["content"], str(group.entry.answer)
    tree = Tree(Text.assemble((_shown(prompt), "bold"), "  answer: ", _shown(answer)))
    own = tree.add("self")
    for member in group.pool(False):
        own.add(_told(member, text, 0))
    branches = group.pool(True)
    if not branches:
        return tree
    joined = "joined" if branches[0].joined else "not joined: no better than the policy's own"
    experts = tree.add(f"expert ({joined})")
    for cut in sorted({member.prefix for member in branches}):
        after = [member for member in branches if member.prefix == cut]
        prefix = _pieces(after[0], text, 0, cut)
        prefix.stylize("italic")
        anchor = experts.add(prefix)
        for member in after:
            anchor.add(_told(member, text, cut))
    return tree


def _told(member: Member, text: Callable[[list[int]], str], start: int) -> Text:
    """What it was worth, and its tokens from ``start`` on."""
    colour = "green" if member.score == 1 else "red"
    worth = (f"{member.reward:+.2f}", colour)
    return Text.assemble(worth, f" (A {member.advantage:+.2f})  ", _pieces(member, text, start))


def _pieces(member: Member, text: Callable[[list[int]], str], start: int, end: int | None = None) -> Text:
    """The tokens from ``start`` to ``end``, piece by piece as they were written."""
    ids, writers = member.episode.ids[start:end], member.episode.writers[start:end]
    shown, at = [], 0
    while at < len(ids):
        stop = next(
            (index for index in range(at, len(ids)) if (writers[index] == TOOL) != (writers[at] == TOOL)), len(ids)
        )
        shown.append(Text(_shown(text(ids[at:stop])), "dim" if writers[at] == TOOL else ""))
        at = stop
    return Text(" ").join(shown)


def _shown(text: str) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
