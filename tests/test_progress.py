"""How a share is told."""

from __future__ import annotations

from skillweave.progress import share_of


def test_a_share_is_neither_rounded_to_nothing_nor_to_all() -> None:
    said = [share_of(count, 1000, "rows") for count in (0, 1, 10, 990, 991, 1000)]
    assert [text.split(" rows ")[1] for text in said] == ["(0%)", "(under 1%)", "(1%)", "(99%)", "(over 99%)", "(100%)"]
    assert share_of(0, 0, "rows") == "0 of 0 rows (0%)"
