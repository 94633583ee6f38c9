"""The tensors that each entry of a pack's card needs in the tensor file: their names, shapes and dtypes."""

from __future__ import annotations

from skillweave.pack.schema import (
    DifferenceEntry,
    Entry,
    FactorsEntry,
    GroupedEntry,
    MixedEntry,
    RowsEntry,
    StackedEntry,
    WholeEntry,
    group_count,
    packed_width,
    width,
)


def expected_tensors(name: str, entry: Entry) -> dict[str, tuple[tuple[int, ...], str | None]]:
    """Return the shape and dtype of every tensor that an entry needs in the file, by the name of the tensor.

    The dtype is torch's name of it; None stands for any float dtype.
    """
    if isinstance(entry, DifferenceEntry | WholeEntry):
        return {name: (entry.shape, None)}
    if isinstance(entry, RowsEntry):
        return {name: ((entry.added, *entry.shape[1:]), None)} if entry.added else {}
    if isinstance(entry, StackedEntry):
        return _expected_stack(name, entry)
    if isinstance(entry, GroupedEntry):
        return _expected_grouped(name, entry)
    if isinstance(entry, MixedEntry):
        blocks = entry.blocks()
        coded = sum(vectors * packed_width(length, bits) for bits, vectors, length in blocks)
        scales = sum(vectors * group_count(length, entry.group_size) for _, vectors, length in blocks)
        return {
            f"{name}.codes": ((entry.matrices, coded), "uint8"),
            f"{name}.scale": ((entry.matrices, scales), "bfloat16"),
        }
    rows, columns = entry.matrix
    if isinstance(entry, FactorsEntry):
        return {
            f"{name}.A": ((rows, entry.rank), "bfloat16"),
            f"{name}.B": ((entry.rank, columns), "bfloat16"),
        }
    codes = "uint8" if entry.bits == 4 else "int8"
    by_row = entry.scales == "row"
    tensors: dict[str, tuple[tuple[int, ...], str | None]] = {
        f"{name}.A": ((rows, width(entry.rank, entry.bits)), codes),
        f"{name}.B": ((entry.rank, width(columns, entry.bits)), codes),
        f"{name}.B_scale": ((entry.rank,), "float16" if by_row else "bfloat16"),
    }
    if by_row:
        tensors[f"{name}.A_scale"] = ((rows,), "float16")
    if entry.smooth:
        tensors[f"{entry.group}.smooth"] = ((columns,), "float16")
    return tensors


def _expected_stack(name: str, entry: StackedEntry) -> dict[str, tuple[tuple[int, ...], str | None]]:
    rows, columns = entry.shape[-2:]
    total = sum(entry.ranks)
    codes = {4: "uint8", 8: "int8", 16: "bfloat16"}[entry.bits]
    tensors: dict[str, tuple[tuple[int, ...], str | None]] = {
        f"{name}.A": ((rows, sum(width(rank, entry.bits) for rank in entry.ranks)), codes),
        f"{name}.B": ((total, width(columns, entry.bits)), codes),
    }
    if entry.bits != 16 and entry.scales == "row":
        tensors[f"{name}.A_scale"] = ((len(entry.ranks), rows), "float16")
    if entry.bits != 16:
        tensors[f"{name}.B_scale"] = ((total,), "float16" if entry.scales == "row" else "bfloat16")
    return tensors


def _expected_grouped(name: str, entry: GroupedEntry) -> dict[str, tuple[tuple[int, ...], str | None]]:
    rows, columns = entry.matrix
    scale: tuple[tuple[int, ...], str] = ((entry.matrices,), "float32")
    if entry.group_size is not None:
        scale = (entry.matrices * rows, group_count(columns, entry.group_size)), "bfloat16"
    tensors: dict[str, tuple[tuple[int, ...], str | None]] = {
        f"{name}.codes": ((entry.matrices * rows, packed_width(columns, entry.bits)), "uint8"),
        f"{name}.scale": scale,
    }
    if entry.rank:
        tensors[f"{name}.A"] = (entry.matrices * rows, entry.rank), "bfloat16"
        tensors[f"{name}.B"] = (entry.matrices * entry.rank, columns), "bfloat16"
    return tensors
