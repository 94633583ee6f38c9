"""Write one small folder of each artefact, and interrupted runs, for :mod:`test_golden` to read.

``PYTHONPATH=tests python -m helpers.golden FOLDER`` writes what today's code writes. ``tests/golden/1`` was written
before the packages got their current names, and must not change: it shows that old artefacts can still be read.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml

from helpers.method_driver import stop_at
from helpers.micro import save_micro
from skillweave.base import open_base
from skillweave.delta import Delta
from skillweave.methods import get_method
from skillweave.methods.cku.knowledge.corpus import make_corpus, write_corpus
from skillweave.pipeline import build, read_weave_config
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Weave, fit_router

TASK = {
    "source": "builtin",
    "name": "sort_numbers",
    "config": {"least": 2, "most": 2},
    "splits": {"train": 12, "calibration": 4, "test": 3},
}
HOPS = {
    "source": "builtin",
    "name": "hops",
    "config": {"style": "short", "people": 6, "relations": 2, "least": 2, "most": 2, "places": 0},
    "splits": {"train": 6, "calibration": 2, "test": 2},
}
STEPS = {"steps": 4, "batch_size": 2, "learning_rate": 1e-3}
RUNS = {
    "specialise": ("warm-start", {"task": TASK, "warm_start": STEPS, "rounds": 0, "probe_prompts": 2}),
    "tpaw": (
        "round-1",
        {"task": TASK, "sft": None, "rounds": 1, "training": STEPS, "held_out": 2, "judge_by": "log_prob"},
    ),
    "cku": (
        "unlearn",
        {
            "forget": ["corpus/forget.jsonl"],
            "retain": ["corpus/retain.jsonl"],
            "training": STEPS,
            "watch": {"budget": None},
        },
    ),
    "e3tir": (
        "warm-up",
        {
            "task": HOPS,
            "instruction": "",
            "max_length": 500,
            "rollout": {"max_tokens": 300, "max_tool_calls": 2},
            "warm_up": {"steps": 4, "n": 2, "m": 2, "prompts": 1},
            "rl": {"steps": 0},
            "evaluate_on": 0,
        },
    ),
}
"""Method -> (the stage in which it is interrupted, its settings)."""
BUILD = {
    "name": "golden",
    "base": "base",
    "dtype": "float32",
    "skills": {
        "sort": {
            "task": TASK,
            "settings": {"warm_start": STEPS, "rounds": 0, "probe_prompts": 2, "save_every": 2, "bf16": False},
        },
    },
    "zip": {"ratio": 1.0, "allow_left_out": True},
    "score": {"max_new_tokens": 4},
}


def run_settings(name: str) -> dict:
    return {**RUNS[name][1], "bf16": False, "save_every": 2}


def write(folder: Path) -> None:
    folder.mkdir(parents=True)
    os.chdir(folder)  # so that artefacts name their base by a relative path
    save_micro(Path("base"), hidden=32, layers=1, context=512)
    base = open_base("base", device="cpu")
    model = save_micro(Path("tuned"), hidden=32, layers=1, context=512, seed=3)
    delta = Delta.between("base", model)
    delta.save_pretrained("delta")
    get_method("specialise").run(
        base,
        get_method("specialise").config(
            task=TASK, train="lora", lora={"rank": 2}, warm_start=STEPS, rounds=0, probe_prompts=2, bf16=False
        ),
        Path("lora-run"),
    )
    pack = zip_delta(delta, base, None, ZipConfig(ratio=1.0, allow_left_out=True), name="sort")
    pack.save_pretrained("pack")
    router = fit_router(base, {"sort": ["Sort 3, 1", "Sort 2, 1", "Sort 9, 8"]}, ["Hello!", "Who are you?"])
    Weave.write("weave", base, {"sort": "pack"}, router, dtype="float32")
    write_corpus(Path("corpus"), make_corpus(people=4, short=True))
    for name, (stage, _) in RUNS.items():
        method = get_method(name)
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, stage, 3)
            try:
                method.run(open_base("base", device="cpu"), method.config(**run_settings(name)), Path(f"{name}-run"))
            except KeyboardInterrupt:
                continue
        raise SystemExit(f"{name} was not interrupted in {stage}")
    Path("weave.yaml").write_text(yaml.safe_dump(BUILD))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "warm-start", 3)
        try:
            build(read_weave_config("weave.yaml"), Path("built"), command="skillweave build weave.yaml -o built")
        except KeyboardInterrupt:
            return
    raise SystemExit("the build was not interrupted")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(sys.argv[1]))
    print(json.dumps(sorted(path.name for path in Path.cwd().iterdir())))
