"""Small generators that need no download: short prompts, short answers, exactly one right answer each.

Each file has three parts:

* a settings class, the config of the generator
* ``make(rng, settings) -> (prompt, answer)``, a pure function of the given ``random.Random``, as in reasoning-gym
* ``BUILTIN``, which says how an answer is checked

Three generators also bring tools and a scripted expert: ``hops``, ``steps`` and ``tables``.
"""

from __future__ import annotations

from skillweave.tasks.builtin import (
    caesar,
    count_letters,
    extract_contact,
    hops,
    json_calls,
    micro_add,
    micro_reverse,
    micro_shift,
    micro_sort,
    reverse_words,
    sort_numbers,
    steps,
    tables,
)
from skillweave.tasks.builtin.kind import Builtin

BUILTINS: dict[str, Builtin] = {
    "caesar": caesar.BUILTIN,
    "count_letters": count_letters.BUILTIN,
    "extract_contact": extract_contact.BUILTIN,
    "hops": hops.BUILTIN,
    "json_calls": json_calls.BUILTIN,
    "micro_add": micro_add.BUILTIN,
    "micro_reverse": micro_reverse.BUILTIN,
    "micro_shift": micro_shift.BUILTIN,
    "micro_sort": micro_sort.BUILTIN,
    "reverse_words": reverse_words.BUILTIN,
    "sort_numbers": sort_numbers.BUILTIN,
    "steps": steps.BUILTIN,
    "tables": tables.BUILTIN,
}

__all__ = ["BUILTINS", "Builtin"]
