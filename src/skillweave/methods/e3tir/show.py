"""A group of conversations as a tree that can be read."""

from __future__ import annotations

from collections.abc import Callable

from rich.markup import escape
from rich.tree import Tree

from skillweave.base.chat import as_messages
from skillweave.methods.e3tir.rollouts import Group, Member
from skillweave.tools.call import TOOL

_LONGEST = 400
"""Characters of a piece that are shown."""


def group_tree(group: Group, text: Callable[[list[int]], str]) -> Tree:
    """The prompt, the policy's own conversations below it, and below each anchor what went on from there.

    ``text`` turns tokens into text. What a tool said is dim, what an expert wrote is in italics.
    """
    prompt, answer = as_messages(group.entry.prompt)[-1]["content"], str(group.entry.answer)
    tree = Tree(f"[bold]{_shown(prompt)}[/]  answer: {_shown(answer)}")
    own = tree.add("self")
    for member in group.pool(False):
        own.add(f"{_worth(member)}  {_pieces(member, text, 0)}")
    branches = group.pool(True)
    if not branches:
        return tree
    joined = "joined" if branches[0].joined else "not joined: no better than the policy's own"
    experts = tree.add(f"expert ({joined})")
    for cut in sorted({member.prefix for member in branches}):
        after = [member for member in branches if member.prefix == cut]
        anchor = experts.add(f"[italic]{_pieces(after[0], text, 0, cut)}[/]")
        for member in after:
            anchor.add(f"{_worth(member)}  {_pieces(member, text, cut)}")
    return tree


def _worth(member: Member) -> str:
    colour = "green" if member.score == 1 else "red"
    return f"[{colour}]{member.reward:+.2f}[/] (A {member.advantage:+.2f})"


def _pieces(member: Member, text: Callable[[list[int]], str], start: int, end: int | None = None) -> str:
    """The tokens from ``start`` to ``end``, piece by piece as they were written."""
    ids, writers = member.episode.ids[start:end], member.episode.writers[start:end]
    shown, at = [], 0
    while at < len(ids):
        stop = next(
            (index for index in range(at, len(ids)) if (writers[index] == TOOL) != (writers[at] == TOOL)), len(ids)
        )
        piece = _shown(text(ids[at:stop]))
        shown.append(f"[dim]{piece}[/]" if writers[at] == TOOL else piece)
        at = stop
    return " ".join(shown)


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return escape(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")
