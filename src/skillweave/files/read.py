"""The only place where files are opened for reading.

All limits are here, in :mod:`skillweave.files.parse_json` and in :mod:`skillweave.files.parse_yaml`. If something
cannot be read, a :class:`UserError` names the file, the place in it if there is one, and what to do.
"""

from __future__ import annotations

import codecs
import errno
import io
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from skillweave.errors import UserError, shown_value
from skillweave.files.parse_json import parse_json
from skillweave.files.place import moved_aside
from skillweave.units import human_bytes

if TYPE_CHECKING:  # see read_card_file
    from pydantic import BaseModel

M = TypeVar("M", bound="BaseModel")

LARGEST_TEXT = 2**28
"""Most bytes of a text or JSON file. The largest known ones, tokenizers and shard indexes, have about 2**25."""
LARGEST_YAML = 2**20
"""Most bytes of a settings file."""

_WIDE = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LONGEST_PATH_SHOWN = 200
_PART = 2**20


def open_file(path: str | Path, wanted: str = "a file") -> io.BufferedReader:
    """Open a file for reading bytes; errors ask the person to name ``wanted``.

    Only a regular file (or a link to one) is opened: a pipe could hang, and a device has no end.
    """
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait forever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise unreadable(path, error, wanted) from error
    except ValueError:
        raise UserError(f"{str(path)!a:.200} contains a character that no path can have: name {wanted}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise UserError(f"{path} is a folder: name {wanted}")
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
        raise UserError(f"{path} is {kind}, not a regular file: copy its contents into a file, and name that")
    return open(descriptor, "rb")


def regular_file(path: str | Path, wanted: str = "a file") -> Path:
    """The path, checked by :func:`open_file`; for libraries that open files themselves, and would wait for pipes."""
    open_file(path, wanted).close()
    return Path(path)


def unreadable(path: str | Path, error: OSError, wanted: str = "a file") -> UserError:
    """The error for a path that the system does not open, with what the person can do."""
    shown = str(path)
    if len(shown) > _LONGEST_PATH_SHOWN:
        shown = f"{shown[:100]}...{shown[-40:]}"
    if error.errno == errno.ENOENT:
        if aside := moved_aside(path):
            return UserError(f"{shown} does not exist, because a write was cut off: {aside}")
        return UserError(f"{shown} does not exist: name {wanted}")
    if error.errno == errno.EISDIR:
        return UserError(f"{shown} is a folder: name {wanted}")
    if error.errno == errno.ENOTDIR:
        return UserError(f"{shown} does not exist, because a part of the path is a file: name {wanted}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return UserError(
            f"{shown}: no permission to read it ({error.strerror}): change its permissions, or name {wanted}"
        )
    if error.errno == errno.ENAMETOOLONG:
        return UserError(f"{shown} is too long for a path ({len(str(path)):,} characters): name {wanted}")
    if error.errno == errno.ELOOP:
        return UserError(f"{shown} is a link that leads back to itself: name {wanted}")
    return UserError(f"{shown} could not be read ({error.strerror or error}): name {wanted}")


def is_file(path: str | Path) -> bool:
    """Whether the path is a file; False for a path that cannot exist (too long, or with a NUL)."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: str | Path) -> bool:
    """Whether the path is a folder; False for a path that cannot exist (too long, or with a NUL)."""
    return stat.S_ISDIR(_mode(path))


def check_folder(path: str | Path, wanted: str) -> None:
    """Raise :class:`UserError`, which asks for ``wanted``, if the path is not a folder."""
    if not is_folder(path):
        raise UserError(f"{path} {'is a file' if is_file(path) else 'does not exist'}: name {wanted}")


def _mode(path: str | Path) -> int:
    """The mode of the file at ``path``, 0 if there is none. Raises :class:`UserError` without permission to look."""
    try:
        return os.stat(path).st_mode
    except ValueError:
        return 0
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise unreadable(path, error, "a place that you may read") from error
        return 0


def home_path(path: str | Path) -> Path:
    """The path with ``~`` and ``~name`` replaced. Raises :class:`UserError` for a user who does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such home folder ({error}): write the whole path") from error


def read_bytes(path: str | Path, wanted: str = "a file", *, largest: int = LARGEST_TEXT) -> bytes:
    """The bytes of a file of at most ``largest``."""
    with open_file(path, wanted) as file:
        try:
            size, data = os.fstat(file.fileno()).st_size, b""
            if size <= largest:
                # A read takes its memory before it reads, so ask for what is there, and not for all that is allowed.
                data = file.read(size + 1)
                while len(data) <= largest and (more := file.read(min(_PART, largest + 1 - len(data)))):
                    data += more  # it grew meanwhile, or the system does not tell its size, as in /proc
        except OSError as error:
            raise unreadable(path, error, wanted) from error
    if max(size, len(data)) > largest:
        raise UserError(f"{path} is larger than {human_bytes(largest)}, the limit for such a file: name {wanted}")
    return data


def read_text(path: str | Path, wanted: str = "a file", *, largest: int = LARGEST_TEXT) -> str:
    """The text of a UTF-8 file, without a byte order mark; errors ask the person to name ``wanted``."""
    return decode_text(read_bytes(path, wanted, largest=largest), path, wanted)


def decode_text(data: bytes, path: str | Path, wanted: str = "a file") -> str:
    """The text in the bytes of the UTF-8 file at ``path``, as :func:`read_text` gives it."""
    if wide := wide_text(data):
        raise UserError(f"{path}: {wide}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 text ({error.reason} at byte {error.start}): save the file as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}, line {line}: there is a NUL character, so this is not a text file: name {wanted}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def wide_text(start: bytes) -> str | None:
    """What is wrong with a text that begins with the byte order mark of UTF-16 or UTF-32; None for other texts."""
    return (
        "not UTF-8 text (it begins as UTF-16 or UTF-32 does): save the file as UTF-8"
        if start.startswith(_WIDE)
        else None
    )


def read_json(path: str | Path, wanted: str = "a file") -> Any:
    """The value of a JSON file. Raises :class:`UserError`, with file and line, if it is missing or damaged."""
    return parse_json(read_text(path, wanted), str(path))


def read_object(
    path: str | Path,
    keys: Mapping[str, type | tuple[type, ...]],
    fix: str,
    *,
    optional: Mapping[str, type | tuple[type, ...]] | None = None,
) -> dict[str, Any]:
    """The object in a JSON file that this program wrote earlier, such as the state of a run.

    ``keys`` are keys that it must have, each with the type of the value; those of ``optional`` may be missing. A number
    must be finite, and true is none. Raises :class:`UserError` if the file is missing or damaged; ``fix`` tells a
    person what to do then.
    """
    try:
        value = read_json(path)
    except UserError as error:
        raise UserError(f"{error}. {fix}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {shown_value(value)}. {fix}")
    for key, kind in {**(optional or {}), **keys}.items():
        if key not in value:
            if key in keys:
                raise UserError(f"{path}: the key '{key}' is missing. {fix}")
        elif not _is_kind(value[key], kind):
            raise UserError(f"{path}: '{key}' has a value of the wrong kind, {shown_value(value[key])}. {fix}")
    return value


def _is_kind(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether a value of a JSON file has one of these types; NaN and infinity have none."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return type(value) in kinds and not (isinstance(value, float) and not math.isfinite(value))


def read_json_lines(path: str | Path, wanted: str = "a JSONL file") -> Iterator[tuple[str, Any]]:
    """Yield the place ("FILE, line 3") and the value of each line of a JSONL file; blank lines are skipped."""
    for number, line in enumerate(read_text(path, wanted).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_json(line, where)


def split_lines(file: io.BufferedIOBase, longest: int) -> Iterator[bytes]:
    """Yield the lines of an open file, each with its line break; a carriage return alone also ends a line.

    Of a line with more than ``longest`` bytes only the beginning is given, which is also longer than ``longest``.
    """
    begun, cut = b"", False
    while piece := file.readline(longest + 1):
        *lines, begun = (begun + piece).splitlines(keepends=True)
        if begun.endswith(b"\n"):  # after a carriage return, a line feed may follow in the next piece
            lines.append(begun)
            begun = b""
        for line in lines:
            if not cut:
                yield line
            cut = False
        if len(begun) > longest and not begun.endswith(b"\r"):  # what follows a carriage return is another line
            if not cut:
                yield begun
            begun, cut = b"", True
    if begun and not cut:
        yield begun


def read_versioned(path: str | Path, newest: int) -> Any:
    """The value of a JSON file whose ``schema_version`` is from 1 to ``newest``.

    Numbers must be finite, and whole numbers below 2**64. Raises :class:`UserError`, also for a file that a newer
    skillweave wrote.
    """
    values = parse_json(read_text(path), str(path), bounded=True)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object with keys. Copy or make the artefact again.")
    version = values.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        found = f"is {version!a:.40}" if "schema_version" in values else "is missing"
        raise UserError(
            f"{path}: schema_version {found}; expected a whole number from 1 to {newest}. Copy or make the artefact "
            f"again."
        )
    if version > newest:
        raise UserError(
            f"{path} has schema version {version}; this skillweave reads up to {newest}. Upgrade skillweave."
        )
    return values


def read_card_file(path: str | Path, card: type[M], newest: int, fix: str) -> M:
    """The card of an artefact. Raises :class:`UserError`, with the wrong field; ``fix`` tells a person what to do."""
    return _validated(path, card, read_versioned(path, newest), fix)


def read_model(path: str | Path, model: type[M], fix: str) -> M:
    """What a JSON file holds that this program wrote earlier. Raises :class:`UserError` as :func:`read_object`."""
    return _validated(path, model, read_object(path, {}, fix), fix)


def _validated(path: str | Path, model: type[M], values: Any, fix: str) -> M:
    from pydantic import ValidationError  # late: `--help` opens files and need not wait for pydantic

    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the whole"
        found = f" (found {shown_value(problem['input'])})" if problem["type"] != "missing" else ""
        raise UserError(f"{path}: {place}: {problem['msg'].removeprefix('Value error, ')}{found}. {fix}") from error
