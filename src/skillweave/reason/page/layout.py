"""Where the nodes of a tree are drawn: a tidy tree that grows from left to right."""

from __future__ import annotations

from collections.abc import Sequence

_Contour = list[tuple[float, float]]
"""The first and last row that a subtree uses in each column, from the column of its own top node on."""


def tidy_layout(parents: Sequence[int | None]) -> list[tuple[int, float]]:
    """The column and the row of each node.

    ``parents``: for each node the index of its parent, which must be an earlier node; None for a top node, of which
    there may be several. The column is the number of ancestors. Nodes in one column are at least one row apart,
    children keep their order, a parent stands in the middle of its first and last child, and the first row is 0.

    Subtrees are packed by their contours, as Reingold and Tilford do (Tidier drawings of trees, 1981).
    """
    children: list[list[int]] = [[] for _ in parents]
    tops: list[int] = []
    columns: list[int] = []
    for node, parent in enumerate(parents):
        if parent is None:
            tops.append(node)
            columns.append(0)
        elif not 0 <= parent < node:
            raise ValueError(f"node {node}: its parent {parent} is not an earlier node")
        else:
            children[parent].append(node)
            columns.append(columns[parent] + 1)

    offsets = [0.0] * len(parents)  # the row of a node less the row of its parent
    contours: dict[int, _Contour] = {}
    for node in reversed(range(len(parents))):  # children come before their parents
        shifts, below = _pack([contours.pop(child) for child in children[node]])
        middle = (shifts[0] + shifts[-1]) / 2 if shifts else 0.0
        for child, shift in zip(children[node], shifts, strict=True):
            offsets[child] = shift - middle
        contours[node] = [(0.0, 0.0), *((first - middle, last - middle) for first, last in below)]

    for top, shift in zip(tops, _pack([contours[top] for top in tops])[0], strict=True):
        offsets[top] = shift
    rows: list[float] = []
    for node, parent in enumerate(parents):
        rows.append(offsets[node] + (0.0 if parent is None else rows[parent]))
    first_row = min(rows, default=0.0)
    return [(column, row - first_row) for column, row in zip(columns, rows, strict=True)]


def _pack(subtrees: Sequence[_Contour]) -> tuple[list[float], _Contour]:
    """How far each subtree is moved, so that it keeps one row of distance to those before it, and their contour."""
    shifts: list[float] = []
    packed: _Contour = []
    for contour in subtrees:
        gaps = [last - first + 1 for (_, last), (first, _) in zip(packed, contour, strict=False)]
        shift = max(gaps, default=0.0)
        shifts.append(shift)
        moved = [(first + shift, last + shift) for first, last in contour]
        shared = min(len(packed), len(moved))
        both = [(packed[at][0], moved[at][1]) for at in range(shared)]
        packed = [*both, *packed[shared:], *moved[shared:]]
    return shifts, packed
