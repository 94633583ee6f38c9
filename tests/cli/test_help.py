"""Help and version: they are complete, and come without waiting for slow libraries."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from helpers.terminal import run
from skillweave import __version__
from skillweave.cli.commands import app

TOP = typer.main.get_command(app).commands  # type: ignore[attr-defined]
GROUPS = {name: command.commands for name, command in TOP.items() if hasattr(command, "commands")}
COMMANDS = {
    **{name: command for name, command in TOP.items() if name not in GROUPS},
    **{f"{name} {below}": command for name, group in GROUPS.items() for below, command in group.items()},
}


def test_the_commands_are_those_of_the_reference() -> None:
    single = {"build", "demo", "specialise", "tpaw", "e3tir", "generate", "eval", "zip", "unzip", "inspect"}
    single |= {"reason", "induction", "serve", "chat"}
    assert set(COMMANDS) == single | {
        *(f"cku {name}" for name in ("unlearn", "score", "report", "corpus")),
        *(f"tasks {name}" for name in ("check", "list")),
        *(f"audit {name}" for name in ("data", "rollouts", "drop", "model", "pack", "reference", "repair")),
        "bench serve",
        *(f"export {name}" for name in ("lora", "vllm")),
    }
    for words, names in (([], TOP), *(([name], group) for name, group in GROUPS.items())):
        shown = run(*words, "--help")
        assert shown.code == 0
        for name in names:
            assert re.search(rf"^│ {name} ", shown.out, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_gives_examples_each_on_a_line_of_its_own_at_80_columns(name: str) -> None:
    shown = run(*name.split(), "--help", columns=80)
    assert shown.code == 0
    lines = [line.strip() for line in shown.out.splitlines()]
    assert max(map(len, shown.out.splitlines())) <= 80
    examples = re.findall(r"`(skillweave [^`]*)`", COMMANDS[name].callback.__doc__)
    assert examples
    assert "Examples" in lines
    for example in examples:
        assert f"{example} ".startswith(f"skillweave {name} ")
        assert example in lines


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    for parameter in COMMANDS[name].params:
        assert getattr(parameter, "help", None), f"{name}: {parameter.name}"


def test_no_command_at_all_shows_the_help() -> None:
    assert "Commands" in run().out + run().err


def test_help_and_version_come_without_the_heavy_libraries() -> None:
    """Help must not wait for torch. The test looks at what was imported, because times vary."""
    code = (
        "import sys\nfrom skillweave.cli import main\n"
        "sys.argv[1:] = [{argument!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {{'torch', 'transformers', 'numpy', 'matplotlib', 'sklearn'}} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for argument, expected in (("--version", f"skillweave {__version__}\n"), ("--help", "Commands")):
        ran = subprocess.run([sys.executable, "-c", code.format(argument=argument)], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert expected in ran.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target: nowhere\nprompt: hi\n", "no model is found at 'nowhere'"),
        ("target: x\nmax_tokens: 3\n", "did you mean 'max_new_tokens'"),
        ("- a\n", "expected keys and values"),
    ],
)
def test_arguments_and_options_come_from_a_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "ask.yaml").write_text(text)
    shown = run("generate", "--config", str(tmp_path / "ask.yaml"))
    assert shown.code == 2
    assert message in " ".join(shown.err.split())
