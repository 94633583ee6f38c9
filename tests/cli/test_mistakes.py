"""A person's mistakes: exit code 2, one message on standard error that says what to do, and nothing is lost.

A bug keeps its traceback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import skillweave.engine
from helpers.terminal import Bench, Ran, refused, run
from skillweave.errors import UserError

Arguments = Callable[[Bench], list[object]]


SAME_EVERYWHERE: list[tuple[str, Arguments, str]] = [
    # models and devices
    ("no model", lambda b: ["generate", "nowhere", "x"], "no model is found at 'nowhere'"),
    ("a pack", lambda b: ["tasks", "check", b.task, "-b", b.pack], "is a skillpack, not a model: name the base it was"),
    ("no base", lambda b: ["zip", "-b", "nowhere", "--delta", b.delta, "-o", "z"], "no model is found at 'nowhere'"),
    ("no tuned", lambda b: ["zip", "-b", b.base, "--tuned", "no-tuned", "-o", "z"], "no model is found at 'no-tuned'"),
    ("bundled", lambda b: ["generate", "bundled:smollm", "x"], "did you mean 'smollm2'?"),
    ("dtype", lambda b: ["generate", b.pack, "x", "--dtype", "float99"], "unknown dtype 'float99'; did you mean"),
    ("dtype", lambda b: ["unzip", b.pack, "-o", "m", "--dtype", "bf16"], "unknown dtype 'bf16'"),
    ("device", lambda b: ["generate", b.pack, "x", "--device", "warp:1"], "unknown device 'warp:1': write cpu"),
    ("device", lambda b: ["eval", b.pack, "-t", b.task, "--device", "cuda:99"], "no device 'cuda:99'; it has: cpu"),
    # the wrong base
    ("pack", lambda b: ["generate", b.pack, "x", "--base", b.other_base], r"the pack 'sort' belongs on .* Open the"),
    ("delta", lambda b: ["generate", b.delta, "x", "--base", b.other_base], "the delta belongs on"),
    ("unzip", lambda b: ["unzip", b.pack, "-o", "m", "--base", b.other_base], "belongs on"),
    ("zip", lambda b: ["zip", "-b", b.other_base, "--delta", b.delta, "-o", "z"], "the delta belongs on"),
    ("--base of a model", lambda b: ["generate", b.base, "x", "--base", b.base], "--base goes with a weave"),
    # packs by name
    ("name", lambda b: ["generate", b.pack, "x", "--pack", "sotr"], "no pack 'sotr'; did you mean 'sort'?"),
    ("name", lambda b: ["eval", b.pack, "-t", b.task, "-p", "sotr", "--limit", "1"], "did you mean 'sort'?"),
    ("none", lambda b: ["generate", b.base, "x", "--pack", "sort"], "no pack 'sort'; there are none"),
    ("router", lambda b: ["generate", b.pack, "x", "--pack", "auto"], "no router: name a pack"),
    ("tools", lambda b: ["generate", b.base, "x", "--tools", "calculater"], "did you mean 'calculator'"),
    ("tools", lambda b: ["generate", b.base, "x", "--tools", ","], "--tools names no tool: write --tools calculator"),
    ("tools", lambda b: ["generate", b.base, "x", "--tools", "ask.yaml"], r"ask\.yaml"),
    ("tools", lambda b: ["generate", b.base, "x", "--tools", "shop.py:price"], r"shop\.py does not exist"),
    ("tools", lambda b: ["eval", b.base, "-t", "builtin:steps", "--tools", "python"], "brings its own tools"),
    # what to zip, and how
    ("prefill", lambda b: ["zip", "-b", b.base, "--delta", b.delta, "-o", "z", "--prefill=backbone"], "needs refine"),
    ("nothing", lambda b: ["zip", "-b", b.base, "-o", "z"], "one of --tuned MODEL, --lora ADAPTER and --delta FOLDER"),
    ("two", lambda b: ["zip", "-b", b.base, "-o", "z", "--tuned", b.base, "--delta", b.delta], "give one of --tuned"),
    ("no delta", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.base], "has no delta.json"),
    ("a run", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.folder / "run"], "delta of this run is .*/delta"),
    ("a run", lambda b: ["generate", b.folder / "run", "x"], "work folder of a training, .* delta .*/run/delta"),
    ("tuned", lambda b: ["zip", "-b", b.base, "-o", "z", "--tuned", b.delta], "is a delta, not a model: .*zip --delta"),
    ("no such adapter", lambda b: ["zip", "-b", b.base, "-o", "z", "--lora", "adaptr"],
     "no adapter is found at 'adaptr'"),
    ("a revision of a folder", lambda b: ["zip", "-b", b.base, "-o", "z", "--lora", b.adapter, "--revision", "v2"],
     "is a folder, and only repositories of the hub have revisions"),
    ("a revision of nothing", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "--revision", "v2"],
     "--revision and --subfolder belong to --lora"),
    ("export", lambda b: ["export", "lora", b.pack, b.delta], "holds something already"),
    ("export", lambda b: ["export", "lora", b.pack, "x", "--base", b.other_base], "the pack 'sort' belongs on"),
    ("export", lambda b: ["export", "lora", b.pack, "x", "--dtype", "int8"], "unknown dtype 'int8'"),
    ("export", lambda b: ["export", "lora", b.delta, "x"], "is not a skillpack"),
    ("no adapter", lambda b: ["zip", "-b", b.base, "-o", "z", "--lora", b.delta], "has no adapter_config.json"),
    ("equal", lambda b: ["zip", "-b", b.base, "-o", "z", "--tuned", b.base], "there is nothing to zip"),
    ("name", lambda b: ["zip", "-b", b.base, "-o", "my pack", "--delta", b.delta], r"'my pack' cannot .* with --name"),
    ("name", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "--name", "no good"], "'no good' cannot"),
    ("no task", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "--target-retention", "0.9"],
     r"--target-retention needs prompts with a verifier.*name a task with --task"),
    ("no target", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "--limit", "9"],
     "--limit belongs to --target-retention"),
    ("a target and a budget", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "--budget", "9MB",
     "--target-retention", "0.9", "--task", str(b.task)], "chooses the size of the pack: leave out budget"),
    ("ratio", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "--ratio", "little"], "ratio.*'little'"),
    ("unit", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "--budget", "8XB"], "unknown unit 'XB'"),
    ("both", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "--budget", "8MB", "--ratio", "1/2"],
     "not both"),
    ("budget", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "--budget", "100"], r"[\d,]+ bytes"),
    ("codec", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "-s", "codec=skilzip"], "did you mean"),
    ("calibration", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "-s", "activation_aware=true"],
     "name a task with --task"),
    # settings
    ("key", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "-s", "rotat=false"],
     "unknown key 'rotat'; did you mean 'rotate'?"),
    ("key", lambda b: ["specialise", "-b", b.base, "-t", b.task, "-o", "r", "-s", "warm_start.stps=4"],
     "unknown key 'warm_start.stps'; did you mean 'steps'?"),
    ("YAML", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "-s", "rotate=[1"],
     r"--set rotate=\.\.\.: the value is not valid YAML"),
    ("no value", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "-s", "rotate"], "write key=value"),
    ("no file", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "-c", "no.yaml"],
     "no.yaml does not exist"),
    ("a folder", lambda b: ["zip", "-b", b.base, "-o", "z", "--delta", b.delta, "-c", b.base],
     "is a folder: name a YAML file"),
    ("no file", lambda b: ["build", "no.yaml", "-o", "w"], "no.yaml does not exist: name a YAML file"),
    ("demo", lambda b: ["demo", "-o", "d", "-s", "bse=x"], "unknown key 'bse'; did you mean 'base'?"),
    # tasks
    ("task", lambda b: ["eval", b.base, "-t", "sort"], "'sort' names no task: write builtin:NAME"),
    ("builtin", lambda b: ["eval", b.base, "-t", "builtin:sort_number"], "did you mean 'sort_numbers'?"),
    ("no file", lambda b: ["eval", b.base, "-t", "no.jsonl"], "no.jsonl does not exist"),
    ("no file", lambda b: ["specialise", "-b", b.base, "-t", "no.yaml", "-o", "r"], "no.yaml does not exist"),
    ("samples", lambda b: ["eval", b.base, "-t", b.task, "--samples", "4"], "set --temperature, for example"),
    ("inf", lambda b: ["eval", b.base, "-t", b.task, "--temperature", "inf"], "inf is not a finite number"),
    ("twice", lambda b: ["eval", b.base, "-t", b.task, "-t", b.task], "is given twice: name each task once"),
    ("top-p", lambda b: ["eval", b.base, "-t", b.task, "--top-p", "0.9"], "--top-p has no effect at temperature 0"),
    ("top-p", lambda b: ["generate", b.base, "x", "--top-p", "0.9"], "--top-p has no effect at temperature 0"),
    ("top-p", lambda b: ["generate", b.base, "x", "--top-p", "0", "--temperature", "1"], "leaves no token to draw"),
    ("few-shot", lambda b: ["eval", b.base, "-t", b.task, "--few-shot", "99"], "--few-shot 99: of the"),
    ("split", lambda b: ["eval", b.base, "-t", b.task, "--split", "tset"], "no split 'tset'; did you mean 'test'?"),
    # prompts
    ("none", lambda b: ["generate", b.base], "there is no prompt: .* Give the prompt after it"),
    ("both", lambda b: ["generate", b.base, "x", "--file", "f.txt"], "with --file, and not both"),
    ("empty", lambda b: ["generate", b.base, " "], "the prompt is empty: give a text to answer"),
    ("long", lambda b: ["generate", b.pack, "x" * 300], "prompt 1 has 303 tokens; the model's context is 256"),
    ("no file", lambda b: ["generate", b.base, "--file", "no.txt"], "no.txt does not exist: name a text file"),
    ("no file", lambda b: ["generate", b.base, "--file", "no.jsonl"], "no.jsonl does not exist"),
    ("a folder", lambda b: ["generate", b.base, "--file", b.base], "is a folder: name a text file"),
    ("--out", lambda b: ["generate", b.base, "x", "-o", "o.jsonl"], "--out goes with --file"),
    # options without an effect
    ("split", lambda b: ["audit", "data", b.task, "--split", "test", "-o", "a"], "--split test: .* has no splits"),
    ("model", lambda b: ["audit", "rollouts", b.task, "-m", b.base, "-o", "a"], "which only --ablate makes"),
    ("twice", lambda b: ["bench", "serve", "http://x/v1", "--mix", "a=1,a=2"], "--mix names 'a' twice"),
    # folders that are something else
    ("nowhere", lambda b: ["inspect", "nowhere"], "nowhere does not exist: name the folder of"),
    ("any folder", lambda b: ["inspect", b.folder], "is neither a weave nor a skillpack"),
    ("a base", lambda b: ["inspect", b.pack, "--base", b.base], "--base belongs to a delta folder"),
    ("a model", lambda b: ["unzip", b.base, "-o", "m"], "is not a skillpack"),
    ("no pack there", lambda b: ["unzip", "nowhere", "-o", "m"], "nowhere does not exist: name"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [pytest.param(a, m, id=f"{n}-{i}") for i, (n, a, m) in enumerate(SAME_EVERYWHERE)],
)
def test_a_mistake_is_told_in_one_message_and_leaves_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Arguments, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(*arguments(bench))
    assert re.search(message, said), said
    assert os.listdir(tmp_path) == []


def test_a_key_in_a_file_is_named_with_its_line(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "zip.yaml"
    file.write_text("# how\nbits: 4\nrotat: false\n")
    said = refused("zip", "-b", bench.base, "--delta", bench.delta, "-o", tmp_path / "z", "-c", file)
    assert f"{file}, line 3: unknown key 'rotat'; did you mean 'rotate'?" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_new_tokens: yes", "max_new_tokens is true or false in YAML"),
        ("pack: no", "pack is true or false"),
        ("pack: {name: sort}", "pack must be one value, found"),
    ],
)
def test_a_default_of_another_type_is_not_taken_for_a_number_or_a_text(
    bench: Bench, tmp_path: Path, line: str, said: str
) -> None:
    file = tmp_path / "ask.yaml"
    file.write_text(line)
    assert f"{file}: {said}" in refused("generate", bench.pack, "x", "-c", file)


def test_the_message_is_shown_letter_by_letter(bench: Bench, tmp_path: Path) -> None:
    """Nothing in a path or a pattern is read as markup of the terminal."""
    odd = tmp_path / r"[red]:smile:\[x]"
    assert f"{odd}.yaml does not exist" in refused("build", f"{odd}.yaml", "-o", tmp_path / "w")
    file = tmp_path / "[b]asked.txt"
    file.write_text("\n")
    assert refused("generate", bench.base, "--file", file).startswith(f"{file} holds no prompt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt" "x"}', "line 2: not valid JSON"),
        ('["x"]', "line 2: expected an object"),
        ('{"question": "x"}', r"line 2: expected either 'prompt' or 'messages', found \['question'\]"),
        ('{"prompt": "x", "messages": []}', "line 2: expected either 'prompt' or 'messages'"),
        ('{"prompt": 5}', "line 2: 5 is no prompt: write"),
        ('{"prompt": null}', "line 2: None is no prompt"),
        ('{"messages": "x"}', "line 2: 'messages' is a text that holds no JSON"),
        ('{"messages": []}', r"line 2: 'messages' must be a list of messages, found \[\]"),
        ('{"messages": [{"role": "user"}]}', "line 2: messages, message 1 must have the texts 'role' and 'content'"),
        ('{"prompt": "x", "pack": 5}', "line 2: 'pack' must be a pack's name"),
        ('{"prompt": "x", "pack": "sotr"}', "no pack 'sotr'; did you mean 'sort'?"),
    ],
)
def test_a_bad_line_of_prompts_is_named(bench: Bench, tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    said = refused("generate", bench.pack, "--file", file, "-o", tmp_path / "answers.jsonl")
    assert re.search(message, said), said
    assert os.listdir(tmp_path) == ["asked.jsonl"]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
@pytest.mark.parametrize("name", ["asked.txt", "asked.jsonl"])
def test_a_file_without_prompts_or_of_another_kind(bench: Bench, tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    said = refused("generate", bench.base, "--file", tmp_path / name)
    assert said.startswith(f"{tmp_path / name}")
    assert ("holds no prompt" if b"\xff" not in content else "not UTF-8 text") in said


def test_a_bad_row_of_a_task_is_named(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c"}\n')
    assert f"{file}, line 2: has a 'prompt' but neither" in refused("eval", bench.base, "-t", file)


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(bench: Bench, tmp_path: Path) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(bench.pack, folder)
    data = bytearray((folder / "skillpack.coded").read_bytes())
    data[-5] ^= 1
    (folder / "skillpack.coded").write_bytes(data)
    return folder


def test_a_damaged_pack_is_never_used(bench: Bench, damaged: Path, tmp_path: Path) -> None:
    for arguments in (
        ("inspect", damaged),
        ("generate", damaged, "x"),
        ("eval", damaged, "-t", bench.task),
        ("unzip", damaged, "-o", tmp_path / "m"),
    ):
        assert "skillpack.coded is damaged: its SHA-256 is" in refused(*arguments)
    (damaged / "skillpack.json").write_text('{\n "name": \n}')
    assert "skillpack.json, line 3: not valid JSON" in refused("inspect", damaged)


def test_a_weave_with_a_damaged_pack_or_card(weave: Path, tmp_path: Path) -> None:
    copy = tmp_path / "weave"
    shutil.copytree(weave, copy)
    (copy / "packs" / "spell" / "skillpack.coded").write_bytes(b"")
    for arguments in (("inspect", copy), ("generate", copy, "x")):
        assert "spell/skillpack.coded is damaged" in refused(*arguments)
    card = json.loads((weave / "weave.json").read_text())
    (copy / "weave.json").write_text(json.dumps({**card, "schema_version": 99}))
    assert "schema version 99" in refused("generate", copy, "x")


# -- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["zip", "unzip", "specialise", "build"])
def test_a_folder_that_holds_something_else_is_left_alone(
    bench: Bench, weave: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "precious"
    out.mkdir()
    (out / "config.json").write_text('{"thesis": "years of work"}')
    start: dict[str, list[object]] = {
        "zip": ["zip", "-b", bench.base, "--delta", bench.delta, "--ratio", "0.5"],
        "unzip": ["unzip", bench.pack],
        "specialise": ["specialise", "-b", bench.base, "-t", bench.task, "-c", bench.settings],
        "build": ["build", bench.folder / "weave.yaml"],
    }
    assert f"{out} holds something" in refused(*start[command], "-o", out)
    assert (out / "config.json").read_text() == '{"thesis": "years of work"}'
    file = tmp_path / "file"
    file.write_text("words")
    assert f"{file} holds something" in refused(*start[command], "-o", file)
    assert f"{file} is a file" in refused(*start[command], "-o", file / "below")
    assert file.read_text() == "words"
    assert sorted(os.listdir(tmp_path)) == ["file", "precious"]


def test_a_model_is_not_replaced_by_another(bench: Bench, tmp_path: Path) -> None:
    assert run("unzip", bench.pack, "-o", tmp_path / "m").code == 0
    before = (tmp_path / "m" / "model.safetensors").stat().st_mtime_ns
    assert "holds something already" in refused("unzip", bench.pack, "-o", tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").stat().st_mtime_ns == before


def test_a_file_that_cannot_be_written_is_told_before_the_work(bench: Bench, tmp_path: Path) -> None:
    asked = tmp_path / "asked.txt"
    asked.write_text("hello\n")
    for out, message in ((tmp_path, "is a folder: name a file in it"), (asked / "x", "asked.txt is a file")):
        # The target does not exist either: it would be told first if anything were opened before.
        assert message in refused("generate", "nowhere", "--file", asked, "-o", out)
        assert message in refused("eval", "nowhere", "-t", bench.task, "-o", out)


def test_a_run_with_other_settings_or_another_base_is_not_gone_on_with(bench: Bench, tmp_path: Path) -> None:
    given = ["-t", bench.task, "-c", bench.settings, "-o", bench.delta.parent]
    assert "holds a run with other settings (seed)" in refused("specialise", "-b", bench.base, *given, "-s", "seed=4")
    other = shutil.copytree(bench.base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 2e-6}))
    said = " ".join(refused("specialise", "-b", other, *given).split())
    assert "a run on a base with these weights and another config: rms_norm_eps is 2e-06 (then: 1e-06). Choose" in said


@pytest.fixture
def small_disk(disk_of: Callable[[str], Path]) -> Path:
    """A file system of 200 kB: there is room for two packs of 74 kB, but not for the model of 330 kB."""
    return disk_of("200k")


def test_a_full_disk_keeps_the_old_pack(bench: Bench, small_disk: Path) -> None:
    start = ["zip", "-b", bench.base, "--delta", bench.delta, "-o", small_disk / "p"]
    assert run(*start, "--ratio", "0.5").code == 0
    assert "no space left on the disk for the model m" in refused("unzip", bench.pack, "-o", small_disk / "m")
    (small_disk / "filler").write_bytes(b"\0" * 110_000)
    assert "no space left on the disk" in refused(*start, "--ratio", "0.4")
    assert sorted(os.listdir(small_disk)) == ["filler", "p"]
    assert "1/2.0 of the bf16 delta" in run("inspect", small_disk / "p").out


# -- typer's own, and what is no mistake -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["genrate", "x"], "Did you mean 'generate'?"),
        (["generate", "x", "--pak", "y"], "--pack"),
        (["generate"], "target"),
        (["generate", "x", "y", "-n", "0"], "--max-new-tokens"),
        (["generate", "x", "y", "-n", "few"], "--max-new-tokens"),
        (["generate", "x", "y", "--temperature", "-1"], "--temperature"),
        (["eval", "x"], "--task"),
        (["eval", "x", "-t", "y", "--limit", "0"], "--limit"),
        (["zip", "-o", "z"], "--base"),
        (["build", "w.yaml"], "--out"),
    ],
)
def test_a_mistyped_command_line(arguments: list[str], message: str) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err.replace("'TARGET'", "'target'")  # older releases of typer write arguments in capitals
    assert "Traceback" not in ran.err


def _with_engine(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Ran:
    def broken(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(skillweave.engine, "open_engine", broken)
    return run("generate", "x", "y")


def test_a_bug_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        _with_engine(monkeypatch, RuntimeError("a bug"))


def test_a_bug_shows_its_traceback() -> None:
    code = (
        "import skillweave.cli.build as command, sys\n"
        "def check_place(out): raise RuntimeError('a bug')\n"
        "command.check_place = check_place\n"
        "sys.argv[1:] = ['build', 'x.yaml', '-o', 'w']\n"
        "from skillweave.cli import main\nmain()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "Traceback (most recent call last)" in ran.stderr
    assert "in check_place" in ran.stderr
    assert ran.stderr.endswith("RuntimeError: a bug\n")


def test_a_mistake_told_by_the_library_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = _with_engine(monkeypatch, UserError("two lines:\n  of [help]"))
    assert (ran.code, ran.err) == (2, "Error: two lines:\n  of [help]\n")


def test_control_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = _with_engine(monkeypatch, KeyboardInterrupt())
    assert ran.code == 130
    assert ran.err.strip() == "Stopped. Run the same command again to start anew."
