"""Read a pack's card and check its folder, without reading the values of its tensors.

The card, the hashes of the files, and the names, shapes and dtypes in the tensor file must all agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from skillweave.delta.carry import FOLDER, Carried, read_files
from skillweave.delta.carry import PARTS as CARRIED_PARTS
from skillweave.errors import UserError
from skillweave.files.folder import Folder
from skillweave.files.read import check_folder, is_file, read_card_file
from skillweave.files.recover import settle
from skillweave.files.whole import read_whole
from skillweave.pack.coded_file import LARGEST_FILE, ReadParts, check_counts, coded_tensors, read_parts
from skillweave.pack.expected import expected_tensors
from skillweave.pack.schema import ROWS, SCHEMA_VERSION, LowRankEntry, PackCard, RowsEntry, WholeEntry
from skillweave.units import human_bytes

CARD_FILE = "skillpack.json"
DATA_FILE = "skillpack.safetensors"
CODED_FILE = "skillpack.coded"
"""The tensor file of a pack that has entropy-coded entries, in place of the other."""
README_FILE = "README.md"
"""The card for people. No code reads it, so it has no hash, and a copy of a pack gets a new one."""
PARTS = (CARD_FILE, DATA_FILE, CODED_FILE, README_FILE, *CARRIED_PARTS)
"""Paths of all files that a pack may have."""
AGAIN = "Copy or make the pack again."
_HEADER, _IN_HEADER, _WIDEST = 2**16, 1000, 8
"""Most bytes of a tensor file's header without its tensors and for each tensor, and of one number."""
_REMAKE = "Make the pack again."
_KINDS = {"I": "int", "U": "uint", "F": "float", "BF": "bfloat"}


def data_name(card: PackCard) -> str:
    """Return the name of the tensor file of a pack with this card."""
    return CODED_FILE if card.coded else DATA_FILE


def is_skillpack(folder: str | Path) -> bool:
    """Return whether a folder holds a skillpack."""
    settle(folder)
    return is_file(Path(folder) / CARD_FILE)


def read_stored(folder: str | Path) -> tuple[PackCard, Path, Carried]:
    """Return the card of a pack, the path of its tensor file, and the files that travel along, after all checks.

    Raises :class:`UserError`, with the file and the reason, for a file that is missing, damaged, cut off, of a newer
    version, or not what the card says.
    """
    return read_whole(folder, PARTS, lambda: read_with_parts(folder)[:3])


def read_with_parts(folder: str | Path) -> tuple[PackCard, Path, Carried, ReadParts | None]:
    """Return what :func:`read_stored` does, and the parts of a coded tensor file, whose bytes are read only once."""
    folder = Path(folder)
    if not is_skillpack(folder):
        check_folder(folder, "the folder of a saved pack")
        raise UserError(f"{folder} is not a skillpack: it has no {CARD_FILE}. Name the folder of a saved pack.")
    reader = Folder(folder, CARD_FILE, AGAIN)
    card = read_card_file(reader.file(CARD_FILE), PackCard, SCHEMA_VERSION, AGAIN)
    if strangers := [file for file in card.files if file != data_name(card) and not file.startswith(f"{FOLDER}/")]:
        raise UserError(f"{folder / CARD_FILE}: files: '{strangers[0]}' is no file of a pack. {AGAIN}")
    carried = read_files(reader, card.files, card.from_base)
    name, parts = data_name(card), None
    if card.coded:
        data = folder / name
        parts, plain = read_parts(reader.read(name, card.files.get(name), largest=LARGEST_FILE), card, data)
        kinds = {key: (shape, _dtype(kind)) for key, (shape, kind) in plain.items()} | coded_tensors(card)
    else:
        _check_size(reader.file(name), card)
        data = reader.matches(name, card.files.get(name))
        kinds = _kinds(data)
    check_tensors(card, kinds, str(data))
    if parts is not None:
        check_counts(parts, card, data)
    return card, data, carried, parts


def _check_size(data: Path, card: PackCard) -> None:
    """Raise :class:`UserError` if a tensor file is larger than the tensors of the card can make it.

    To hash it, and to read the names in it, could take hours: an empty file of any size takes no room on the disk.
    """
    expected = [expected_tensors(name, entry) for name, entry in card.entries.items()]
    shapes = {key: shape for tensors in expected for key, (shape, _) in tensors.items()}
    most = _HEADER + sum(_IN_HEADER + 6 * len(key) + _WIDEST * math.prod(shape) for key, shape in shapes.items())
    size = data.stat().st_size
    if size > most:
        raise UserError(
            f"{data} has {human_bytes(size)}, and the tensors that the card names take {human_bytes(most)} at most. "
            f"{AGAIN}"
        )


def _kinds(data: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and dtype of each tensor in a safetensors file."""
    try:
        # As numpy, because `skillweave inspect` must not wait for torch.
        with safe_open(data, framework="numpy") as file:
            heads = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            return {name: (tuple(head.get_shape()), _dtype(head.get_dtype())) for name, head in heads.items()}
    except SafetensorError as error:
        raise UserError(f"{data} is not a safetensors file ({error}). {_REMAKE}") from error


def check_tensors(card: PackCard, tensors: Mapping[str, tuple[tuple[int, ...], str]], where: str) -> None:
    """Raise :class:`UserError` unless these are exactly the tensors, by shape and dtype, that the card's entries need.

    Every tensor belongs to one entry, except a ``smooth``, which belongs to one group. ``where`` begins the message.
    """
    owners: dict[str, str] = {}
    for name, entry in card.entries.items():
        if isinstance(entry, RowsEntry):
            _check_rows(card, name, entry, where)
        for key, (shape, dtype) in expected_tensors(name, entry).items():
            owner = f"the entry '{name}'"
            if isinstance(entry, LowRankEntry) and key == f"{entry.group}.smooth":
                owner = f"the group '{entry.group}'"
            if owners.setdefault(key, owner) != owner:
                raise UserError(f"{where}: {owners[key]} and {owner} both name the tensor '{key}'. {_REMAKE}")
            if key not in tensors:
                raise UserError(f"{where} lacks the tensor '{key}' that the entry '{name}' needs. {_REMAKE}")
            actual_shape, actual = tensors[key]
            right_type = actual == dtype if dtype else actual.startswith(("float", "bfloat"))
            if actual_shape != shape or not right_type:
                raise UserError(
                    f"{where}: the tensor '{key}' is {actual} {actual_shape}, "
                    f"expected {dtype or 'a float type'} {shape}. {_REMAKE}"
                )
    _check_groups(card, where)
    extra = sorted(set(tensors) - set(owners))
    if extra:
        raise UserError(f"{where} holds the tensor '{extra[0]}' that no entry names. {_REMAKE}")


def _check_groups(card: PackCard, where: str) -> None:
    """Raise :class:`UserError` if the matrices of a group cannot have the same input."""
    first: dict[str, tuple[str, LowRankEntry]] = {}
    for name, entry in card.entries.items():
        if not isinstance(entry, LowRankEntry):
            continue
        other, known = first.setdefault(entry.group, (name, entry))
        if (entry.matrix[1], entry.smooth) != (known.matrix[1], known.smooth):
            raise UserError(
                f"{where}: entries.{name}.group: '{entry.group}' is also the group of '{other}', and the matrices of a "
                f"group are fed one input: their widths ({entry.matrix[1]} and {known.matrix[1]}) and 'smooth' "
                f"({entry.smooth} and {known.smooth}) must be equal. {_REMAKE}"
            )


def _check_rows(card: PackCard, name: str, entry: RowsEntry, where: str) -> None:
    """Raise :class:`UserError` if a ``rows`` entry contradicts the card's other entry for the same tensor."""
    tensor = name.removesuffix(ROWS)
    shared = card.entries.get(tensor)
    problem = None
    if tensor == name or not tensor:
        problem = f"the name of such an entry ends with '{ROWS}'"
    elif entry.shape[0] == entry.base_rows:
        problem = "it has as many rows as the base"
    elif isinstance(shared, WholeEntry | RowsEntry):
        problem = f"'{tensor}' is stored whole already"
    elif shared is not None and tuple(shared.shape) != (entry.base_rows, *entry.shape[1:]):
        problem = f"'{tensor}' is {tuple(shared.shape)}, expected {(entry.base_rows, *entry.shape[1:])}"
    if problem:
        raise UserError(f"{where}: the entry '{name}' does not fit: {problem}. {AGAIN}")


def _dtype(name: str) -> str:
    """Return torch's name of a dtype, such as ``"bfloat16"``, for its name in safetensors, such as ``BF16``."""
    letters = name.rstrip("0123456789")
    return _KINDS[letters] + name[len(letters) :] if letters in _KINDS else name.lower().replace("f8_", "float8_")
