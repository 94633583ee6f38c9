"""The examples: valid, commented, and runnable by the command on their top."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.micro import save_micro
from skillweave.config import Config, read_config
from skillweave.delta import Delta
from skillweave.methods.cku.config import CkuConfig
from skillweave.methods.e3tir.config import E3tirConfig
from skillweave.methods.tpaw.config import TpawConfig
from skillweave.pack import Skillpack

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CONFIGS: dict[str, type[Config]] = {
    "self_play.yaml": TpawConfig,
    "tool_agent.yaml": E3tirConfig,
    "unlearn.yaml": CkuConfig,
}

# The same runs with fewer steps. Two of them run on a micro base, which needs a higher rate to learn anything.
FEWER: dict[str, list[str]] = {
    "self_play.yaml": [
        "sft.steps=60", "sft.batch_size=16", "sft.learning_rate=0.003", "rounds=1", "prompts_per_round=16",
        "training.learning_rate=0.001", "held_out=4", "keep=last", "judge_by=log_prob", "length_ratio=20",
    ],
    "tool_agent.yaml": [
        "max_length=1024", "rollout.max_tokens=600", "traces=8", "sft.steps=8", "sft.learning_rate=0.003",
        "warm_up.steps=1", "warm_up.n=2", "warm_up.m=2", "rl.steps=1", "rl.n=4", "evaluate_on=2",
    ],
    "unlearn.yaml": ["training.steps=2", "watch.every=2", "watch.budget=0.5"],
}  # fmt: skip
MICRO = ("self_play.yaml", "tool_agent.yaml")


def _commands(example: Path) -> list[list[str]]:
    """The commands in the comment (or the docstring) on top of an example, without their explanations."""
    lines = example.read_text(encoding="utf-8").splitlines()
    found = [re.match(r"(?:#   |    )((?:skillweave|python) .*)", line) for line in lines[:12]]
    return [shlex.split(re.split(r" {2,}", match[1])[0]) for match in found if match]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "skillweave"] if command[0] == "skillweave" else [sys.executable]
    return subprocess.run([*program, *command[1:]], cwd=ROOT, capture_output=True, text=True)


def test_every_example_is_tested_and_listed() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".yaml", ".py")}
    assert names == {*CONFIGS, "lora_to_pack.py"}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in listed for name in names)


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_are_valid_and_files_exist(name: str) -> None:
    values = yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))
    assert values.pop("base") == "bundled:smollm2"
    assert Path(values.pop("out")).parent == Path("runs")
    config = read_config(CONFIGS[name], values)
    for files in (getattr(config, key, None) for key in ("forget", "retain", "unseen")):
        assert all((ROOT / file).is_file() for file in files or [])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_has_a_comment(name: str) -> None:
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    # A key that only opens a mapping is explained by the keys below it.
    assert [line for line in lines if re.match(r"\s*\w+: *\S", line) and "#" not in line] == []


@pytest.mark.parametrize("name", [*CONFIGS, "lora_to_pack.py"])
def test_the_command_on_top_names_this_file(name: str) -> None:
    assert f"examples/{name}" in _commands(EXAMPLES / name)[0]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CONFIGS)
def test_runs(name: str, tmp_path: Path) -> None:
    options = [part for override in FEWER[name] for part in ("--set", override)]
    if name in MICRO:
        options += ["-b", str(save_micro(tmp_path / "base", context=2048))]
    done = _run([*_commands(EXAMPLES / name)[0], "-o", str(tmp_path / "run"), *options])
    assert done.returncode == 0, done.stderr
    assert Delta.from_pretrained(tmp_path / "run" / "delta").names()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_lora_to_pack_runs(tmp_path: Path) -> None:
    done = _run([*_commands(EXAMPLES / "lora_to_pack.py")[0], "--steps", "4", "--out", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert Skillpack.from_pretrained(tmp_path / "pack").card.bytes.total <= 2_000_000
    assert (tmp_path / "exported" / "adapter_model.safetensors").is_file()
    assert "sort: " in done.stdout
