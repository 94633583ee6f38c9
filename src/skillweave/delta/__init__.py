"""Deltas: what training changed in a base. Take, apply, save and load them, tensor by tensor."""

from typing import TYPE_CHECKING

from skillweave.lazy import lazily

if TYPE_CHECKING:  # at run time the names are imported late: reading a card must not wait for torch
    from skillweave.delta.delta import Delta
    from skillweave.delta.schema import BaseRef, is_delta
    from skillweave.delta.write import write_tuned

__getattr__ = lazily(
    __name__,
    {
        "delta": "Delta",
        "schema": "BaseRef is_delta",
        "write": "write_tuned",
    },
)

__all__ = ["BaseRef", "Delta", "is_delta", "write_tuned"]
