"""A pack in its folder: found, and checked by its card, its hash and the headers of its tensors, which are not read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.files.read import read_card_file
from skillweave.files.recover import settle
from skillweave.pack.schema import SCHEMA_VERSION, PackCard, expected_tensors

CARD_FILE = "skillpack.json"
DATA_FILE = "skillpack.safetensors"
_KINDS = {"I": "int", "U": "uint", "F": "float", "BF": "bfloat"}


def is_skillpack(folder: str | Path) -> bool:
    """Whether a folder holds a skillpack."""
    settle(folder)
    return (Path(folder) / CARD_FILE).is_file()


def read_stored(folder: str | Path) -> tuple[PackCard, Path]:
    """The card of a pack and the file of its tensors, checked to be whole and to hold what the card says.

    A missing, damaged, cut or newer file is a :class:`UserError` that says which, and why.
    """
    folder = Path(folder)
    if not is_skillpack(folder):
        raise UserError(f"{folder} is not a skillpack: it has no {CARD_FILE}. Name the folder of a saved pack.")
    card = read_card_file(folder / CARD_FILE, PackCard, SCHEMA_VERSION, "Copy or make the pack again.")
    data = folder / DATA_FILE
    if not data.is_file():
        raise UserError(f"{data} is missing: the pack is incomplete. Copy or make it again.")
    found = sha256_file(data)
    if found != card.files.get(DATA_FILE):
        raise UserError(
            f"{data} is damaged: its SHA-256 is {found[:12]}..., and {CARD_FILE} names "
            f"{str(card.files.get(DATA_FILE))[:12]}... Copy or make the pack again."
        )
    try:
        with safe_open(data, framework="numpy") as file:
            heads = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            kinds = {name: (tuple(head.get_shape()), _dtype(head.get_dtype())) for name, head in heads.items()}
    except SafetensorError as error:
        raise UserError(f"{data} is not a safetensors file ({error}). Make the pack again.") from error
    check_tensors(card, kinds, str(data))
    return card, data


def check_tensors(card: PackCard, tensors: Mapping[str, tuple[tuple[int, ...], str]], where: str) -> None:
    """Raise :class:`UserError` unless the tensors, given by shape and dtype, are those that the card's entries need."""
    known: set[str] = set()
    for name, entry in card.entries.items():
        for key, (shape, dtype) in expected_tensors(name, entry).items():
            known.add(key)
            if key not in tensors:
                raise UserError(f"{where} lacks the tensor '{key}' that the entry '{name}' needs. Make the pack again.")
            found_shape, found = tensors[key]
            right_type = found == dtype if dtype else found.startswith(("float", "bfloat"))
            if found_shape != shape or not right_type:
                raise UserError(
                    f"{where}: the tensor '{key}' is {found} {found_shape}, "
                    f"expected {dtype or 'a float type'} {shape}. Make the pack again."
                )
    extra = sorted(set(tensors) - known)
    if extra:
        raise UserError(f"{where} holds the tensor '{extra[0]}' that no entry names. Make the pack again.")


def _dtype(name: str) -> str:
    """``"bfloat16"`` for what safetensors calls ``BF16``."""
    letters = name.rstrip("0123456789")
    return _KINDS[letters] + name[len(letters) :] if letters in _KINDS else name.lower().replace("f8_", "float8_")
