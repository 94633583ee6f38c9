"""Random mutations of files and folders, by a seeded generator: accidental damage and deliberate attacks."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

LEFT_OUTSIDE = "left-outside.txt"
"""A file beside the folder that is mutated; links and paths lead to it."""

NUMBERS = [
    0,
    -1,
    1,
    2,
    127,
    -128,
    255,
    2**31,
    2**63,
    -(2**63) - 1,
    2**64,
    10**30,
    0.5,
    -0.0,
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    float("-inf"),
]
TEXTS = [
    "",
    " ",
    "x" * 300,
    "../" + LEFT_OUTSIDE,
    "/etc/hostname",
    "a/b",
    ".",
    "..",
    "\0",
    "\x1b]0;x\x07",
    "\u202e",
    "\ud800",
    "NaN",
    "float32",
    "whole",
    "None",
    "1",
    "$x_1$",
    "{{ 1 // 0 }}",
    "é" * 3,
    "😀",
]
RAW = [
    "",
    "{",
    "[]",
    "null",
    "[" * 3000,
    "{}",
    "1" + "0" * 5000,
    '{"a": 1, "a": 2}',
    "\ufeff{}",
    "\0",
    "NaN",
    '"\\ud800"',
]

STRANGE = [
    "<<: *a",
    "a: &a [*a]",
    "? [a]\n: b",
    "---",
    "...",
    "2024-13-45",
    "x: 9" + "9" * 5000,
    "x: " + "[" * 2000,
    "!!python/name:os.system x",
    "x: !!binary aGk=",
    "%TAG ! x",
]
"""Lines that have a special meaning in YAML."""


def mutate_file(rng: Random, file: Path) -> str:
    """Change one file in one way that suits its ending; return a description of the change."""
    ways: list[Callable[[Random, Path], str]] = [_bytes]
    if file.suffix == ".json":
        ways += [_json, _json, _json]
    if file.suffix == ".jsonl":
        ways += [_json_lines, _json_lines]
    if file.suffix == ".safetensors":
        ways += [_header, _header, _values]
    if file.suffix in (".yaml", ".csv", ".tsv", ".txt", ".jsonl", ".jinja", ".md"):
        ways += [_text]
    try:
        return rng.choice(ways)(rng, file)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        return _bytes(rng, file)  # an earlier mutation destroyed the structure


def mutate_folder(rng: Random, folder: Path) -> str:
    """Change one thing in a folder, mostly one of its files, sometimes the set of files; return a description."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    # A card is mutated more often than a data file, because more can be wrong in it.
    file = rng.choice([path for path in files for _ in range(3 if path.suffix == ".json" else 2)])
    if rng.random() < 0.8:
        return f"{file.relative_to(folder)}: {mutate_file(rng, file)}"
    return _files(rng, folder, file, rng.choice(files))


def rehash(folder: Path) -> None:
    """Write the current SHA-256 of the files into every card of a folder, as the author of an artefact can."""
    for card in sorted(folder.rglob("*.json"), key=lambda path: -len(path.parts)):
        values = _loaded(card)
        files = values.get("files") if isinstance(values, dict) else None
        if not isinstance(files, dict):
            continue
        for name in files:
            if isinstance(name, str) and "\0" not in name and os.path.isfile(card.parent / name):
                files[name] = hashlib.sha256((card.parent / name).read_bytes()).hexdigest()
        card.write_text(_dumped(values), encoding="utf-8", errors="surrogatepass")


def hashed_files(folder: Path) -> set[Path]:
    """The files of a folder whose hash is in one of its cards."""
    found = set()
    for card in folder.rglob("*.json"):
        values = _loaded(card)
        files = values.get("files") if isinstance(values, dict) else None
        found |= {card.parent / name for name in files} if isinstance(files, dict) else set()
    return found


# -- of bytes --------------------------------------------------------------------------------------------------------


def _bytes(rng: Random, file: Path) -> str:
    data = bytearray(file.read_bytes())
    at = rng.randrange(len(data) + 1)
    way = rng.choice(
        ["flip", "flip", "cut", "cut head", "zeros", "insert", "twice", "empty", "raw", "append", "utf-16"]
    )
    if way == "flip" and data:
        at %= len(data)
        data[at] ^= 1 << rng.randrange(8)
    elif way == "cut":
        del data[at:]
    elif way == "cut head":
        del data[: at % 100]
    elif way == "zeros":
        data[at : at + 16] = bytes(min(16, len(data) - at))
    elif way == "insert":
        data[at:at] = rng.randbytes(rng.randint(1, 8))
    elif way == "twice":
        data[at:at] = data[at : at + rng.randint(1, 200)]
    elif way == "empty":
        data.clear()
    elif way == "raw":
        data[:] = rng.choice(RAW).encode("utf-8", "surrogatepass")
    elif way == "append":
        data += rng.choice([b"\n", b" ", b"\0", b"}", b"x", b"\n{}\n", rng.randbytes(5)])
    else:
        data[:] = bytes(data).decode("latin-1").encode("utf-16")
    file.write_bytes(data)
    return f"bytes, {way} at {at}"


def _text(rng: Random, file: Path) -> str:
    lines = file.read_text(encoding="utf-8").split("\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    way = rng.choice(["drop", "repeat", "swap", "indent", "separator", "insert", "alias", "quote", "line ends"])
    if way == "drop":
        del lines[at]
    elif way == "repeat":
        lines.insert(other, lines[at])
    elif way == "swap":
        lines[at], lines[other] = lines[other], lines[at]
    elif way == "indent":
        lines[at] = rng.choice(["  ", "\t", " "]) + lines[at]
    elif way == "separator":
        one, two = rng.sample([":", ",", "\t", '"', "{", "}", "[", "]", "-", "#", "&a ", "*a", "!!set ", "|"], 2)
        lines[at] = lines[at].replace(one, two, 1)
    elif way == "insert":
        place = rng.randrange(len(lines[at]) + 1)
        lines[at] = lines[at][:place] + rng.choice(TEXTS).replace("\ud800", "") + lines[at][place:]
    elif way == "alias":
        lines[at] = rng.choice(STRANGE)
    elif way == "quote":
        lines[at] = lines[at].replace('"', "'", 1)
    else:
        file.write_bytes("\r\n".join(lines).encode())
        return "text, line ends of Windows"
    file.write_text("\n".join(lines), encoding="utf-8")
    return f"text, {way} in line {at + 1}"


# -- of JSON ---------------------------------------------------------------------------------------------------------


def _loaded(file: Path) -> Any:
    if not file.is_file():  # a pipe would never end
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return None


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)


def _json(rng: Random, file: Path) -> str:
    values = _loaded(file)
    if not isinstance(values, dict | list) or not values:
        return _bytes(rng, file)
    told, text = mutate_json(rng, values)
    file.write_text(text, encoding="utf-8")
    return f"JSON, {told}"


def _json_lines(rng: Random, file: Path) -> str:
    lines = file.read_text(encoding="utf-8").split("\n")
    at = rng.randrange(len(lines))
    try:
        values = json.loads(lines[at])
    except ValueError:
        return _text(rng, file)
    told, lines[at] = mutate_json(rng, values)
    file.write_text("\n".join(lines), encoding="utf-8")
    return f"line {at + 1}, {told}"


def mutate_json(rng: Random, values: Any) -> tuple[str, str]:
    """The place that was changed in a JSON value, and the text of the new value."""
    holder, key = rng.choice(list(_places(values)))
    old = holder[key]
    way = rng.choice(["number", "text", "type", "delete", "rename", "add", "twice", "swap", "wrap", "deep", "nudge"])
    told = f"{way} at {key!r:.60}"
    if way == "number":
        holder[key] = rng.choice(NUMBERS)
    elif way == "text":
        holder[key] = rng.choice(TEXTS)
    elif way == "type":
        holder[key] = rng.choice([None, True, False, [], {}, [old], {"x": old}, str(old), [old, old]])
    elif way == "delete":
        del holder[key]
    elif way == "rename" and isinstance(holder, dict):
        holder[rng.choice([f"{key}x", *TEXTS])] = holder.pop(key)
    elif way == "add" and isinstance(holder, dict):
        holder[rng.choice(["extra", "__class__", "weight", *TEXTS])] = rng.choice([1, "x", None, old])
    elif way == "twice" and isinstance(holder, dict):
        holder[key] = "@twice@"
        text = _dumped(values).replace(
            '"@twice@"', f"{_dumped(old)}, {_dumped(key)}: {rng.choice([_dumped(old), '1', 'null'])}", 1
        )
        return told, text
    elif way == "swap":
        other, its = rng.choice(list(_places(values)))
        if not _holds(old, other) and not _holds(other[its], holder):
            holder[key], other[its] = other[its], old
    elif way == "deep":
        holder[key] = "@deep@"
        depth = rng.choice([50, 150, 5000])
        return told, _dumped(values).replace('"@deep@"', "[" * depth + "]" * depth, 1)
    elif way == "nudge" and isinstance(old, int | float):
        holder[key] = old + rng.choice([1, -1, 0.25])
    else:
        holder[key] = [old]
    return told, _dumped(values)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _holds(value: Any, holder: Any) -> bool:
    """Whether ``holder`` is ``value`` or lies anywhere in it; each place is visited once."""
    return value is holder or any(inner[key] is holder for inner, key in _places(value))


# -- of safetensors --------------------------------------------------------------------------------------------------


def read_safetensors(file: Path) -> tuple[dict[str, Any], bytearray]:
    """The header and the data of a safetensors file, read without the library."""
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])


def _write_safetensors(file: Path, header: Any, data: bytes) -> None:
    text = _dumped(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _header(rng: Random, file: Path) -> str:
    header, data = read_safetensors(file)
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    entry = header[name]
    way = rng.choice(
        ["swap", "dtype", "shape", "offset", "rename", "add", "remove", "metadata", "any", "length", "gap"]
    )
    if way == "swap":
        header[name], header[other] = header[other], header[name]
    elif way == "dtype":
        entry["dtype"] = rng.choice(
            ["F16", "BF16", "F32", "I8", "U8", "I16", "I32", "BOOL", "F8_E4M3", "F64", "C64", "X"]
        )
    elif way == "shape":
        entry["shape"] = rng.choice([entry["shape"][::-1], [*entry["shape"], 1], [], [0], [2**40], [-1], [3]])
    elif way == "offset":
        entry["data_offsets"][rng.randrange(2)] += rng.choice([1, -1, 4, 10**9, -(10**9)])
    elif way == "rename":
        header[rng.choice([f"{name}x", *TEXTS])] = header.pop(name)
    elif way == "add":
        header[rng.choice(["extra", f"{name}.bias", name.upper()])] = {
            "dtype": "F32",
            "shape": [1],
            "data_offsets": [len(data), len(data) + 4],
        }
        data += struct.pack("<f", 1.0)
    elif way == "remove":
        del header[name]
    elif way == "metadata":
        header["__metadata__"] = rng.choice([{}, {"format": "tf"}, {"format": "np"}, {"x": 1}, [], {"skillpack": "9"}])
    elif way == "any":
        _, text = mutate_json(rng, header)
        file.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)
        return "header, any"
    elif way == "length":
        raw = bytearray(file.read_bytes())
        raw[:8] = struct.pack("<Q", rng.choice([0, 1, len(raw), 2**40, 2**63, 2**64 - 1]))
        file.write_bytes(raw)
        return "header, length"
    else:
        data += bytes(rng.randint(1, 64))
    _write_safetensors(file, header, bytes(data))
    return f"header, {way} at {name!r:.60}"


_SPECIAL = {
    "F16": [0x7E00, 0x7C00, 0xFC00],
    "BF16": [0x7FC0, 0x7F80],
    "F32": [0x7FC00000, 0x7F800000, 0xFF800000],
    "I8": [0x80, 0x7F],
    "U8": [0xFF, 0x00, 0x88],
}
_WIDTH = {"F16": "<H", "BF16": "<H", "F32": "<I", "I8": "<B", "U8": "<B"}


def _values(rng: Random, file: Path) -> str:
    header, data = read_safetensors(file)
    names = [name for name, entry in header.items() if name != "__metadata__" and entry["dtype"] in _WIDTH]
    if not names or not data:
        return _bytes(rng, file)
    name = rng.choice(names)
    kind, (begin, end) = header[name]["dtype"], header[name]["data_offsets"]
    size = struct.calcsize(_WIDTH[kind])
    at = begin + size * rng.randrange(max(1, (end - begin) // size))
    if rng.random() < 0.7:
        data[at : at + size] = struct.pack(_WIDTH[kind], rng.choice(_SPECIAL[kind]))
    else:
        data[at] ^= 1 << rng.randrange(8)
    _write_safetensors(file, header, bytes(data))
    return f"value of {name!r:.60}"


# -- of folders ------------------------------------------------------------------------------------------------------

_STRAY = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "adapter_config.json",
    "config.json",
    "modeling.py",
    "skillpack.json",
    "delta.json",
    "weave.json",
    "tokenizer.json",
    "generation_config.json",
    "chat_template.jinja",
    "README.md",
    "x.gguf",
    ".hidden",
]


def _files(rng: Random, folder: Path, file: Path, other: Path) -> str:
    way = rng.choice(["remove", "stray", "copy over", "link", "link out", "folder", "pipe", "rename", "loop"])
    name = file.relative_to(folder)
    if way == "stray":
        file = file.parent / rng.choice(_STRAY)
        if not file.exists():
            file.write_text(rng.choice(["", "{}", "import os", '{"weight_map": {"a": "b"}}', "[]"]))
        return f"a stray file {file.relative_to(folder)}"
    if way == "copy over":
        if other != file:
            shutil.copyfile(other, file)
        return f"{name}: the content of {other.name}"
    outside = folder.parent / LEFT_OUTSIDE
    if way == "rename":
        file.rename(file.with_name(rng.choice([f"{file.name}x", file.name.upper(), f"x{file.name}"])))
        return f"{name}: renamed"
    data = file.read_bytes()
    file.unlink()
    if way == "link":
        place = folder.parent / f"moved-{file.name}"
        place.write_bytes(data)
        file.symlink_to(place)
    elif way == "link out":
        file.symlink_to(outside)
    elif way == "folder":
        file.mkdir()
    elif way == "pipe":
        os.mkfifo(file)
    elif way == "loop":
        file.symlink_to(file.name)
    return f"{name}: {way}"


def packed(text: str) -> bytes:
    """The text compressed with gzip, without a timestamp, so that the bytes are always the same."""
    return gzip.compress(text.encode(), mtime=0)
