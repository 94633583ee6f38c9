"""Check that a model with fewer token rows than its base still has a row for every token."""

from __future__ import annotations

from typing import Any

from skillweave.errors import UserError


def check_trimmed(tokenizer: Any, rows: int, base_rows: int, where: str) -> None:
    """Raise :class:`UserError` if a token of ``tokenizer`` had a row in the base and has none in ``where``.

    ``rows`` and ``base_rows`` are the numbers of rows. Many bases have more rows than tokens: the last rows only pad
    the matrix, and nothing is lost without them.
    """
    lost = sorted((id_, token) for token, id_ in tokenizer.get_vocab().items() if rows <= id_ < base_rows)
    if lost:
        id_, token = lost[0]
        raise UserError(
            f"{where} has {rows} token rows where its base has {base_rows}, and the removed rows are not padding: the "
            f"token {token!r} has the id {id_} ({len(lost)} such tokens). Take a fine-tune that keeps all tokens."
        )
