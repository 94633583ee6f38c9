"""Families of generated problems: each draws small ordinary Python programs `def f(x):` and inputs for them."""

from skillweave.reason.induction.families.commands import Commands
from skillweave.reason.induction.families.lists import Lists
from skillweave.reason.induction.families.program import Family, Part, Program

FAMILIES: dict[str, Family] = {family.name: family for family in (Lists(), Commands())}
"""All families by name."""

__all__ = ["FAMILIES", "Family", "Part", "Program"]
