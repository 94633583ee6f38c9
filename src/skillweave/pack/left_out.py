"""What a pack or an export leaves out of a change: the share that is allowed, and how messages name the tensors."""

from __future__ import annotations

from collections.abc import Mapping

MOST_LEFT_OUT = 0.05
"""The share of the change (of its squared norm) that may be left out without the user's consent."""
_NAMED = 5


def named_shares(shares: Mapping[str, float]) -> str:
    """Return text for a message: the tensors with the largest shares, and how many others there are."""
    largest = sorted(shares, key=lambda key: -shares[key])
    named = ", ".join(f"'{key}' ({shares[key]:.1%})" for key in largest[:_NAMED])
    return named + (f" and {len(largest) - _NAMED} more" if len(largest) > _NAMED else "")
