"""``--out``: a bad place for a result is reported before any work, and a place is claimed while it is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.terminal import Bench, made, refused, run

NO_BASE = ["-b", "nowhere", "--delta", "no-delta"]
"""These are opened after --out is checked: a message about them would mean that --out was accepted."""


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", "the current folder, or one above it"),
        ("..", "the current folder, or one above it"),
        ("/", "the current folder, or one above it"),
        ("{here}", "the current folder"),
        ("{here}/../{name}", "the current folder"),
        ("{above}", "the current folder, or above it"),
        ("x" * 256, "too long"),
        ("sub/" + "x" * 256 + "/p", "too long"),
        ("file/p", "is a file"),
        ("/proc/p", "nothing can be made there"),
        ("loop", "leads back to itself"),
    ],
)
def test_a_place_that_is_none_is_told_before_the_work(tmp_path: Path, monkeypatch, out: str, message: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "file").touch()
    (here / "loop").symlink_to("loop")
    monkeypatch.chdir(here)
    named = out.format(here=here, above=tmp_path, name=here.name)
    assert message in " ".join(refused("zip", *NO_BASE, "-o", named).split())
    assert sorted(os.listdir(here)) == ["file", "loop"]


@pytest.mark.parametrize(
    ("out", "relation"),
    [("{delta}", "is"), ("{delta}/pack", "is inside"), ("{delta}/..", "contains"), ("{base}/pack", "is inside")],
)
def test_what_is_read_is_not_written(bench: Bench, tmp_path: Path, out: str, relation: str) -> None:
    delta, base = tmp_path / "run" / "delta", tmp_path / "base"
    shutil.copytree(bench.delta, delta)
    shutil.copytree(bench.base, base)
    place = Path(os.path.realpath(out.format(delta=delta, base=base)))
    said = refused("zip", "-b", base, "--delta", delta, "--ratio", "0.5", "-o", place)
    assert f"{place} {relation} the " in said
    assert "only read" in said
    assert sorted(os.listdir(delta)) == sorted(os.listdir(bench.delta))


def test_a_pack_is_replaced_and_what_lies_beside_it_is_not(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "packs" / "p"
    command = ["zip", "-b", bench.base, "--delta", bench.delta, "--ratio", "0.5", "-o", out]
    made(*command)
    made(*command)
    (out / "notes.md").write_text("mine")
    assert "holds 'notes.md', which is no part of a skillpack and would be deleted: move it" in refused(*command)
    assert (out / "notes.md").read_text() == "mine"


OLDER = {
    "audit data train.jsonl": ["report.json", "report.html", "records.jsonl", "malformed.jsonl"],
    "audit rollouts log.jsonl": ["report.json", "report.md", "report.html", "plots/prompts.svg", "prompts.jsonl"],
    "audit model tuned -b nowhere --prompts p.jsonl": ["report.json", "report.md", "report.html"],
    "audit repair tuned -b nowhere --prompts p.jsonl": ["delta.json", "delta-00001-of-00002.safetensors"],
    "cku score -b nowhere --forget f.jsonl --retain r.jsonl": ["score.json", "neurons.svg", "neurons.safetensors"],
    "cku corpus": ["forget.jsonl", "retain.jsonl", "unseen.jsonl", "lookalike.jsonl", "teach.jsonl"],
}
"""Command that replaces an older result -> the files of that result."""


@pytest.mark.parametrize("own", ["notes.md", "plots/mine.png", "files/notes/mine.txt"])
@pytest.mark.parametrize("command", OLDER)
def test_what_is_no_part_of_an_older_result_is_not_deleted(tmp_path: Path, monkeypatch, command: str, own: str) -> None:
    monkeypatch.chdir(tmp_path)
    marks = {"audit": "checkpoint", "settings": {}, "by_layer": [], "overlap": 0}
    for name in [*OLDER[command], own]:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(json.dumps(marks))
    assert f"holds '{own}', which is no part of a" in refused(*command.split(), "-o", "out").replace("\n", " ")
    assert (tmp_path / "out" / own).exists()
    (tmp_path / "out" / own).unlink()
    for folder in (tmp_path / "out").rglob("*/"):
        if not any(path.is_file() for path in folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)  # an empty folder would not be deleted without a word either
    assert "which is no part" not in run(*command.split(), "-o", "out").err


def test_messages_name_the_option_or_argument_that_names_the_place(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for called, command in [
        ("--harvest", ["reason", "problems.jsonl", "--model", "m", "--harvest", "full"]),
        ("OUT", ["export", "lora", "no-pack", "full"]),
        ("OUT", ["export", "vllm", "no-weave", "full"]),
        ("--out", ["unzip", "no-pack", "-o", "full"]),
    ]:
        assert refused(*command).startswith(f"{called} full ")


@pytest.mark.parametrize("name", ["records.jsonl", "prompts.jsonl"])
def test_data_of_a_common_name_is_no_older_audit(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    command = "data" if name == "records.jsonl" else "rollouts"
    assert "something that is not a" in refused("audit", command, "train.jsonl", "-o", tmp_path).replace("\n", " ")


def test_a_file_that_is_read_is_not_replaced(bench: Bench, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f'{{"prompt": "{number}", "answer": "1", "target": "", "split": ""}}\n' for number in range(4))
    Path("rows.jsonl").write_text(rows)
    Path("task.yaml").write_text("source: file\npath: rows.jsonl\nsplits: {test: 2, calibration: 0}\n")
    Path("link").symlink_to("rows.jsonl")
    for command in (
        ["generate", bench.base, "--file", "rows.jsonl", "-o", tmp_path / "rows.jsonl"],
        ["generate", bench.base, "--file", "rows.jsonl", "-o", "link"],
        ["eval", bench.base, "--task", "task.yaml", "-o", "task.yaml"],
        ["eval", bench.base, "--task", "task.yaml", "-o", "rows.jsonl"],
        ["bench", "serve", "http://127.0.0.1:9/v1", "--prompts", "rows.jsonl", "-o", "rows.jsonl"],
        ["reason", "rows.jsonl", "--model", "m", "--harvest", "rows.jsonl"],
        ["audit", "drop", "rows.jsonl", "--audit", "no-audit", "-o", "rows.jsonl"],
    ):
        assert "which this command only reads" in " ".join(refused(*command).split())
    assert Path("rows.jsonl").read_text() == rows
    assert "path: rows.jsonl" in Path("task.yaml").read_text()


@pytest.mark.parametrize(
    ("command", "older"),
    [
        ("generate nowhere --file p.jsonl", '{"prompt": "a", "pack": "base", "answer": "b", "ended": "eos"}\n'),
        ("eval nowhere --task builtin:no-such", '{\n"target": "a", "split": "b"\n}'),
        ("bench serve nowhere", '{\n"plan": {}, "figures": {}\n}'),
        ("reason problems.jsonl --model m", '{"prompt": "a", "answer": "b", "kind": "program"}\n'),
        ("audit reference one two -b nowhere --prompts p.jsonl", '{\n"schema_version": 1, "checkpoints": []\n}'),
        ("audit drop data.jsonl --audit audit", None),
    ],
)
def test_a_file_that_is_no_older_result_is_not_replaced(tmp_path: Path, monkeypatch, command: str, older: str) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out.jsonl"
    option = ["--harvest" if command.startswith("reason") else "--out", out]
    row, asked = b'{"prompt": "a", "answer": "b"}\n', b'{"prompt": "a", "kind": "task", "answer": "b"}\n'
    for mine in (b"mine", b"{}", b'{"checkpoints": 1}', b"\xff\n", b"[]", row, asked):
        out.write_bytes(mine)
        assert f"{option[0]} {out} holds something that is not a" in refused(*command.split(), *option)
        assert out.read_bytes() == mine
    if older is None:
        Path("out.jsonl.dropped.jsonl").touch()
    for accepted in ("", older or "{}"):
        out.write_text(accepted)
        assert "holds something" not in refused(*command.split(), *option)


HOLD = """
import sys
from skillweave.files.lock import take
from skillweave.files.place import place_of
held = take(place_of(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    "command",
    [
        " ".join(["zip", *NO_BASE, "-o"]),
        "generate nowhere --file p.jsonl -o",
        "eval nowhere --task builtin:no-such -o",
        "bench serve nowhere -o",
        "reason problems.jsonl --model m --harvest",
        "audit reference one two -b nowhere --prompts p.jsonl -o",
        "audit drop data.jsonl --audit audit -o",
    ],
)
def test_a_second_command_is_told_before_its_work(tmp_path: Path, command: str) -> None:
    """Otherwise the results of the one that ends first would be lost."""
    out = tmp_path / "made" / "p"
    start = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert f"being written by another process (pid {other.pid}" in refused(*command.split(), out)
        other.kill()
    assert "being written" not in refused(*command.split(), out)
    assert os.listdir(tmp_path / "made") == []


def test_a_claim_ends_with_its_command_and_what_a_killed_one_left_is_no_obstacle(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "packs" / "p"
    for _ in range(2):
        made("zip", "-b", bench.base, "--delta", bench.delta, "--ratio", "0.5", "-o", out)
        assert os.listdir(out.parent) == ["p"]
        assert not list(out.glob(".*"))
        for left in (".score.json.lock", ".score.json.new-0123abcd"):
            (out / left).touch()  # of `skillweave eval -o p/score.json`


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("pack", "inspect {pack}"),
        ("pack", "unzip {pack} -b {base} -o {new}"),
        ("lora", "inspect {lora}"),
        ("lora", "zip -b {base} --lora {lora} --ratio 0.5 -o {new}"),
    ],
)
def test_a_folder_that_a_killed_write_moved_aside_is_found(
    bench: Bench, tmp_path: Path, folder: str, command: str
) -> None:
    """Where a system cannot exchange two folders, a kill may come between the two renames."""
    places = {"base": bench.base, "new": tmp_path / "new", "pack": tmp_path / "pack", "lora": tmp_path / "lora"}
    made("zip", "-b", bench.base, "--delta", bench.delta, "--ratio", "0.5", "-o", places["pack"])
    if folder == "lora":
        made("export", "lora", places["pack"], places["lora"], "--allow-left-out")
    places[folder].rename(tmp_path / f".{folder}.old-01234567")
    asked = command.format(**places).split()
    assert f"brought back {places[folder]}" in made(*asked).err.replace("\n", " ")


def test_a_file_in_a_folder_that_a_killed_write_moved_aside_is_told(tmp_path: Path) -> None:
    (tmp_path / ".data.old-01234567").mkdir()
    said = " ".join(refused("audit", "data", tmp_path / "data" / "x.jsonl", "-o", tmp_path / "out").split())
    assert "x.jsonl does not exist, because a write was cut off: its files are in" in said
    assert f"mv '{tmp_path}/.data.old-01234567' '{tmp_path}/data'" in said


def test_a_command_that_is_refused_leaves_no_folders(tmp_path: Path) -> None:
    refused("zip", *NO_BASE, "-o", tmp_path / "a" / "b" / "p")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("linked", [True, False])
def test_a_pack_goes_to_a_mount_point_or_through_a_link(
    bench: Bench, disk_of: Callable, tmp_path: Path, linked: bool
) -> None:
    disk = disk_of("2m")
    (disk / "lost+found").mkdir()
    out = tmp_path / "link" if linked else disk
    if linked:
        out.symlink_to(disk / "mine")
    for ratio in ("0.5", "0.4"):
        made("zip", "-b", bench.base, "--delta", bench.delta, "--name", "p", "--ratio", ratio, "-o", out)
    assert made("inspect", out).code == 0
    assert out.is_symlink() == linked
    files = ["README.md", "skillpack.coded", "skillpack.json"]
    assert sorted(os.listdir(disk)) == (["lost+found", "mine"] if linked else sorted([*files, "lost+found"]))
    assert sorted(os.listdir(out)) == (files if linked else sorted([*files, "lost+found"]))


def test_a_build_does_not_begin_on_a_mount_point(bench: Bench, disk_of: Callable, weave_file: Path) -> None:
    assert "is a mount point" in refused("build", weave_file, "-o", disk_of("1m"))


@pytest.fixture
def weave_file(bench: Bench, tmp_path: Path) -> Path:
    file = tmp_path / "weave.yaml"
    file.write_text(f"base: {bench.base}\nskills:\n  sort: {{task: {bench.task}}}\n")
    return file


def test_answers_go_to_standard_output_by_its_name(bench: Bench, tmp_path: Path, capfd) -> None:
    (tmp_path / "asked.txt").write_text("hello\n")
    ran = run("generate", bench.base, "--file", tmp_path / "asked.txt", "-n", "2", "-o", "/dev/stdout")
    assert ran.code == 0
    sys.stdout.flush()
    assert '"prompt": "hello"' in capfd.readouterr().out
    assert run("generate", bench.base, "--file", tmp_path / "asked.txt", "-n", "2", "-o", "/dev/null").code == 0


def test_a_model_that_does_not_fit_is_told_before_it_is_written(bench: Bench, disk_of: Callable) -> None:
    disk = disk_of("200k")
    assert "no space left on the disk for the model" in refused("unzip", bench.pack, "-o", disk / "m")
    assert os.listdir(disk) == []
