"""A file that cannot be read gives a sentence with its name, in limited time, whatever kind of file it is."""

from __future__ import annotations

import ast
import gzip
import io
import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import skillweave
from skillweave.config import Config, read_config, read_mapping
from skillweave.errors import UserError
from skillweave.files.parse_json import parse_json
from skillweave.files.parse_yaml import parse_yaml
from skillweave.files.read import (
    home_path,
    is_file,
    is_folder,
    read_bytes,
    read_json,
    read_json_lines,
    read_object,
    read_text,
    read_versioned,
    split_lines,
)
from skillweave.tasks import readers
from skillweave.tasks.readers import read_rows

SOURCE = Path(skillweave.__file__).parent


# -- what lies at a path ---------------------------------------------------------------------------------------------


def _missing(folder: Path) -> Path:
    return folder / "missing.json"


def _folder(folder: Path) -> Path:
    (folder / "x.json").mkdir()
    return folder / "x.json"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.json")
    return folder / "x.json"


def _through_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "x.json"


def _link_to_itself(folder: Path) -> Path:
    (folder / "x.json").symlink_to("x.json")
    return folder / "x.json"


PLACES: list[tuple[Callable[[Path], Path], str]] = [
    (_missing, r"missing\.json does not exist: name"),
    (_folder, r"x\.json is a folder"),
    (_pipe, r"x\.json is a pipe, not a regular file: copy"),
    (_through_a_file, r"x\.json does not exist, because a part of the path is a file"),
    (_link_to_itself, r"x\.json is a link that leads back to itself"),
    (lambda folder: folder / ("x" * 300), "xxx.* is too long for a path"),
    (lambda folder: Path("/dev/zero"), "/dev/zero is a device"),
    (lambda folder: folder / "a\0b", "contains a character that no path can have"),
    (lambda folder: folder / "\ud800", "contains a character that no path can have"),
]


@pytest.mark.parametrize(("make", "message"), PLACES, ids=[message for _, message in PLACES])
@pytest.mark.parametrize(
    "reader",
    [read_json, read_text, read_mapping, lambda path: list(read_rows(path)), lambda path: list(read_json_lines(path))],
)
def test_what_is_no_file_is_told(
    tmp_path: Path, reader: Callable[[Path], object], make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        reader(make(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("", "line 1: not valid JSON"),
        ('{"key": "x"', "line 1: not valid JSON"),
        ("[]", r"expected a JSON object, found \[\]"),
        ('{"seconds": 1}', "the key 'key' is missing"),
        ('{"key": 3, "seconds": 1}', "'key' has a value of the wrong kind, 3"),
        ('{"key": "x", "seconds": null}', "'seconds' has a value of the wrong kind, None"),
    ],
)
def test_a_damaged_file_of_ours_is_told_with_what_to_do(tmp_path: Path, text: str | None, message: str) -> None:
    file, keys = tmp_path / "step.json", {"key": str, "seconds": (int, float)}
    file.write_text('{"key": "x", "seconds": 1.5, "more": []}')
    assert read_object(file, keys, "Begin anew") == {"key": "x", "seconds": 1.5, "more": []}
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(UserError, match=rf"step\.json.*{message}.*\. Begin anew$"):
        read_object(file, keys, "Begin anew")


def test_a_path_that_cannot_exist_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 300), tmp_path / "a\0b", tmp_path / "\ud800", tmp_path / "nothing"):
        assert not is_file(path)
        assert not is_folder(path)
    with pytest.raises(UserError, match="no such home folder"):
        home_path("~nobody-of-this-name/x")


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    """Run as another user, in a process of its own, because root may read everything."""
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "x.json").chmod(0)
    code = (
        "import os, sys\nfrom skillweave.files.read import read_json\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: read_json(sys.argv[1])\nexcept Exception as error: print(type(error).__name__, error)"
    )
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o111)
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.json")], capture_output=True, text=True)
    assert ran.stdout.startswith(f"UserError {tmp_path}"), ran
    assert "no permission to read it" in ran.stdout


# -- what is in a file -----------------------------------------------------------------------------------------------

TEXTS = [
    (b"\xff\xfea\x00", "not UTF-8 text .*UTF-16.*save the file as UTF-8"),
    (b"a\nb\xe9", r"line 2: not UTF-8 text \(.* at byte 3\)"),
    (b"a\nb\0c", "line 2: there is a NUL character"),
    (b"xxxxxxxxxxxxxxxx", "is larger than 8 B"),
]


@pytest.mark.parametrize(("content", "message"), TEXTS)
def test_bytes_that_are_no_text_are_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.txt.*{message}"):
        read_text(tmp_path / "x.txt", largest=8)


def test_a_small_file_takes_little_memory_whatever_its_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, before[1]))
    try:
        assert read_bytes(tmp_path / "x", largest=2**34) == b"abc"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_file_whose_size_is_not_told_is_read_to_its_end() -> None:
    assert read_bytes("/proc/cpuinfo").count(b"\n") > 1
    with pytest.raises(UserError, match="is larger than 5"):
        read_bytes("/proc/cpuinfo", largest=5)


def test_a_text_is_read_as_python_reads_it(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("\ufeffone\r\ntwo\rthree\u2028é\n".encode())
    assert read_text(tmp_path / "x.txt") == (tmp_path / "x.txt").read_text(encoding="utf-8-sig")


@pytest.mark.parametrize("longest", range(4, 9))
def test_lines_of_bytes_end_where_those_of_pythons_texts_end(longest: int) -> None:
    """Whatever is cut by the buffer of ``longest`` bytes; of a line that is longer, only the beginning is given."""
    for parts in itertools.product((b"", b"a", b"bcd", b"\r", b"\n", b"\r\n", b"\x0b"), repeat=4):
        data = b"".join(parts)
        expected = [line.encode() for line in io.StringIO(data.decode(), newline="")]
        found = list(split_lines(io.BytesIO(data), longest))
        assert [line[: longest + 1] for line in found] == [line[: longest + 1] for line in expected], data
    short, long = b"a\r", b"x" * 30
    found = list(split_lines(io.BytesIO(short + long + b"\r" + short + long + b"\n" + short), longest))
    assert [line if line == short else len(line) > longest for line in found] == [short, True, short, True, short]


JSONS = [
    ("[" * 100_000 + "]" * 100_000, "more than 100 deep"),
    ("[" * 150 + "]" * 150, "more than 100 deep"),
    ("9" * 5000, "too many digits"),
    ('{"a": 1,\n"a": 2}', "the key 'a' appears twice"),
    ('{"a": "\\ud800"}', "'a' holds half a character"),
    ('{"\\udc00": 1}', "holds half a character"),
    ('{\n"a" 1}', "x, line 2: not valid JSON"),
    ("", "not valid JSON"),
    ("{}\0", "not valid JSON"),
]


@pytest.mark.parametrize(("text", "message"), JSONS, ids=[message for _, message in JSONS])
def test_json_that_cannot_be_read_is_told(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_json(text, "x")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "18446744073709551616", "1" * 4000])
def test_a_number_that_no_card_can_mean_is_told(tmp_path: Path, number: str) -> None:
    (tmp_path / "card.json").write_text(f'{{"schema_version": 1, "n": {number}}}')
    with pytest.raises(UserError, match=r"card\.json: .*(finite number|larger than any)"):
        read_versioned(tmp_path / "card.json", 1)
    assert parse_json(number, "x") is not None  # what is no card may hold it


def test_json_within_the_bounds_is_what_the_library_reads() -> None:
    import json

    text = '{"a": [1, -2.5e3, true, null, "é\\n\\ud83d\\ude00"], "": {"b": ' + "[" * 90 + "]" * 90 + "}}"
    assert parse_json(text, "x", bounded=True) == json.loads(text)


def _bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


def _merges(levels: int) -> str:
    lines = ["b0: &b0 {x: 1}"]
    lines += [f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 10)}]}}" for n in range(1, levels)]
    return "\n".join(lines)


YAMLS = [
    (_bomb(9), "with its aliases written out, this has more than"),
    (_merges(9), "with its aliases written out"),
    ("a: &a [*a]", r"\*a contains itself"),
    ("a: " + "[" * 100_000, "more than 100 deep"),
    ("a:\n" + "".join(" " * n + "- \n" for n in range(1, 200)) + " " * 300 + "x", "more than 100 deep"),
    ("a: " + "9" * 5000, "a value in this YAML cannot be read"),
    ("a: 1\nb: 2\na: 3", "line 3: .*the key 'a' appears twice"),
    ('a: "\\ud800"', "'a' holds half a character"),
    ('a: "\\U00110000"', "cannot be read|not valid YAML"),
    ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
    ("a: !!binary aGk=", "could not determine a constructor"),
    ("a: !!set {x}", "could not determine a constructor"),
    ("a: !!timestamp 2024-01-01", "could not determine a constructor"),
    ("a: !!int x", "cannot be read"),
    ("a: !!bool x", "cannot be read"),
    ("a: 1\n--- \nb: 2", "another document"),
    ("a:\n\t- b", "line 2: not valid YAML"),
    ("a: *b", "undefined alias"),
    ("a: \x1b", "not valid YAML"),
    ("? [a, {b: c}]\n: 1", "unhashable|not valid YAML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), YAMLS, ids=[message for _, message in YAMLS])
def test_yaml_that_cannot_be_read_is_told(text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"x.*({message})"):
        parse_yaml(text, "x")


def test_yaml_within_the_bounds_is_what_the_library_reads() -> None:
    import yaml

    text = "a: &a {x: [1, 2.5, true, ~, 'é', \"\\u00e9\"]}\nb: *a\nc:\n  <<: *a\n  y: |\n    two\n    lines\n1: 0x1f\n"
    assert parse_yaml(text, "x") == yaml.safe_load(text)
    assert parse_yaml("day: 2024-01-31", "x") == {"day": "2024-01-31"}  # a date is a text, as it is in JSON
    assert parse_yaml("# nothing", "x") is None


class _Settings(Config):
    text: str = ""
    share: float = 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_bomb(5) + "\ntext: *a4", r"s\.yaml, line 6: text: .*\(found \[\[\[.*\.\.\."),
        ("share: .nan", r"s\.yaml, line 1: share: .*finite"),
        ("share: .inf", r"s\.yaml, line 1: share: .*finite"),
        ("0", "expected keys and values, found int"),
        ("1: x", r"s\.yaml"),
        ("text: 2024-13-45\nshare: x", "share"),
    ],
)
def test_settings_that_do_not_fit_are_told_in_short(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_config(_Settings, tmp_path / "s.yaml")
    assert len(str(caught.value)) < 2000


# -- one place -------------------------------------------------------------------------------------------------------

# Modules that read a text they were given, not a file of a person's, or a file that no person names.
OWN_READERS = {
    "audit/data/score.py": "a file in the package",
    "base/chat.py": "arguments of calls in a message",
    "base/precision.py": "/proc/cpuinfo",
    "base/remembered.py": "pieces of the weights that are hashed, and /proc/self/mountinfo",
    "base/template.py": "/proc/self/statm",
    "delta/config_values.py": "a value of a config, as JSON has it",
    "engine/vllm/servers.py": "the log of a process of ours",
    "engine/vllm/wire.py": "answers of a server",
    "reason/models/openai_model.py": "answers of a server",
    "reason/page/write.py": "a file in the package",
    "serve/openai/prompts.py": "arguments of calls in a message",
    "serve/playground/gate.py": "a file in the package, and a form that a browser sent",
    "serve/playground/page.py": "a file in the package",
    "tasks/verifiers/json_value.py": "answers of a model",
    "tasks/verifiers/maths_process.py": "lines of a process of ours",
    "tasks/verifiers/maths_worker.py": "lines of a process of ours",
    "tools/process_child.py": "lines of a process of ours",
    "tools/process_runner.py": "lines of a process of ours",
    "tools/trace.py": "arguments of calls in a message",
    "weave/router.py": "a file in the package",
}
OPENS = {"read_text", "read_bytes", "safe_load", "load_all", "json.load", "json.loads", "yaml.load", "yaml.compose"}


def _calls(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function, named = node.func, ""
        if isinstance(function, ast.Name) and function.id == "open":
            modes = [argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant)]
            named = "" if modes and any(letter in str(modes[0]) for letter in "wax") else "open"
        elif isinstance(function, ast.Attribute):
            owner = function.value.id if isinstance(function.value, ast.Name) else ""
            named = next((name for name in (f"{owner}.{function.attr}", function.attr) if name in OPENS), "")
        found |= {named} - {""}
    return found


def test_files_are_read_in_one_place() -> None:
    """Only modules of skillweave.files open files, or read JSON or YAML."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith("files/") and name not in OWN_READERS and (calls := _calls(ast.parse(path.read_text()))):
            found[name] = calls
    assert not found, "read through skillweave.files.read instead"
    assert {"open", "json.loads"} <= _calls(ast.parse("open(x)\njson.loads(y)\nopen(z, 'wb')"))


def test_rows_are_read_with_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_LONGEST_LINE", 1000)
    row = '{"prompt": "x", "answer": "y"}\n'
    (tmp_path / "long.jsonl").write_text(row + f'{{"prompt": "{"x" * 1000}"}}\n')
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(("\n" * 1_000_000).encode()))
    (tmp_path / "good.jsonl.gz").write_bytes(gzip.compress((row * 100).encode()))
    for name, message in (("long.jsonl", "line 2: the line is longer than"), ("bomb.jsonl.gz", "holds more than")):
        with pytest.raises(UserError, match=rf"{name}, .*{message}"):
            list(read_rows(tmp_path / name))
    assert len(list(read_rows(tmp_path / "good.jsonl.gz"))) == 100
    monkeypatch.setattr(readers, "_LARGEST", 40)
    (tmp_path / "large.csv").write_text("prompt,answer\n" + "x,y\n" * 10)
    with pytest.raises(UserError, match=r"large\.csv, line 8: up to here the file holds more than 40 B"):
        list(read_rows(tmp_path / "large.csv"))


def test_the_limits_are_told_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skillweave.config.LARGEST_YAML", 10)
    (tmp_path / "s.yaml").write_text("text: more than ten")
    with pytest.raises(UserError, match=r"s\.yaml is larger than 10 B, the limit for such a file"):
        read_mapping(tmp_path / "s.yaml")
