"""The sets of one unlearning: what is to go, what must stay, what of that is kept to look at, what was never known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from skillweave.errors import UserError
from skillweave.files.hashes import digest
from skillweave.methods.cku.knowledge.facts import Fact, check_apart, read_facts


@dataclass(frozen=True)
class Sets:
    """``retain`` is trained on, ``held_out`` is of the same files and only looked at."""

    name: str
    forget: list[Fact]
    retain: list[Fact]
    held_out: list[Fact]
    unseen: list[Fact]

    @property
    def key(self) -> str:
        """A digest of all that stands in the sets."""
        sides = (self.forget, self.retain, self.held_out, self.unseen)
        return digest([[[fact.id, fact.prompt, fact.answer] for fact in facts] for facts in sides])


def read_sets(forget: Sequence[Path], retain: Sequence[Path], unseen: Sequence[Path] | None, held_out: int) -> Sets:
    """Read the files, and hold out at most ``held_out`` facts and a quarter of retain: those whose ids come first.

    Raises :class:`UserError` for what stands in two of the sets, and for fewer than four facts to retain.
    """
    gone, stay = read_facts(forget), read_facts(retain)
    strange = read_facts(unseen) if unseen else []
    sides = {"forget": gone, "retain": stay, "unseen": strange}
    for one, other in combinations(sides, 2):
        check_apart(sides[one], sides[other], one, other)
    # By their ids, not as they stand: a file may be sorted by topic, and a part of it is to stand for all.
    gone = sorted(gone, key=lambda fact: fact.id)
    if len(stay) < 4:
        raise UserError(f"{retain[0]}: {len(stay)} facts to retain; at least 4 are needed, a quarter is held out")
    ordered = sorted(stay, key=lambda fact: fact.id)
    count = min(held_out, len(ordered) // 4)
    return Sets(Path(forget[0]).stem, gone, ordered[count:], ordered[:count], strange)
