"""Commands that need no model do not import torch: help, mistakes on the command line, inspecting a pack or a weave."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.terminal import Bench

PROGRAM = """
import contextlib, io, json, sys
from skillweave.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["skillweave", *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            code = main() or 0
        except SystemExit as stop:
            code = stop.code
    heavy = {"torch", "transformers", "trl", "datasets", "matplotlib", "sklearn", "scipy"} & set(sys.modules)
    print(json.dumps([code, sorted(heavy), said.getvalue()]))
"""


def test_no_model_library_is_imported_where_none_is_needed(bench: Bench, weave: Path, tmp_path: Path) -> None:
    commands: dict[int, list[list[str]]] = {
        0: [
            ["--help"], ["--version"], ["eval", "--help"], ["cku", "report", "--help"], ["build", "--help"],
            ["serve", "--help"], ["chat", "--help"], ["bench", "serve", "--help"],
            ["inspect", str(bench.pack), "--tensors"], ["inspect", str(weave)],
        ],
        2: [
            ["evl", "x"], ["eval", "x", "--tsk", "y"], ["eval", "x"], ["generate", "x", "--seed", "one"],
            ["generate", "x"],
            ["inspect", "nowhere"], ["inspect", str(tmp_path)], ["eval", "x", "-t", "y", "--samples", "4"],
            ["eval", "x", "-t", "y", "-o", str(tmp_path)], ["generate", "x", "y", "--top-p", "0.5"],
            ["serve", "x", "--engine", "vlm"], ["chat", "nowhere"], ["bench", "serve", "u", "--mix", "a"],
        ],
    }  # fmt: skip
    asked = [arguments for some in commands.values() for arguments in some]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(asked)], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(found) == len(asked)
    for arguments, (code, heavy, said) in zip(asked, found, strict=True):
        assert heavy == [], arguments
        assert code == (0 if arguments in commands[0] else 2), (arguments, said)


@pytest.mark.parametrize("name", ["delta", "pack", "weave"])
def test_what_a_package_offers_is_there_when_it_is_asked_for(name: str) -> None:
    package = importlib.import_module(f"skillweave.{name}")
    folder = Path(str(package.__file__)).parent
    for offered in package.__all__:
        assert getattr(package, offered) is not None
        assert not (folder / f"{offered}.py").exists(), "the module of that name would stand in its place"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018
