"""``skillweave generate`` and ``eval``: ask, score."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from skillweave.cli.app import app
from skillweave.cli.options import DEFAULTS, DEVICE, DTYPE
from skillweave.cli.places import check_file
from skillweave.errors import UserError

TARGET = typer.Argument(..., help="A weave, skillpack or delta folder, or a model (folder, hub id, GGUF, bundled:...).")
PACK = typer.Option(None, "--pack", "-p", help="A pack's name, `auto` (the router chooses) or `base`.")
OTHER_BASE = typer.Option(None, "--base", "-b", help="The base, where it is not at the place the artefact names.")
MAX_NEW_TOKENS = typer.Option(128, "--max-new-tokens", "-n", min=1, help="Longest answer, in tokens.")
BATCH_SIZE = typer.Option(32, "--batch-size", min=1, help="Prompts answered together.")


@app.command()
def generate(
    target: str = TARGET,
    prompt: str = typer.Argument(None, help="What to ask. Or --file."),
    file: Path = typer.Option(
        None, "--file", "-f", help="One prompt a line; `.jsonl`: objects with `prompt` or `messages`, and `pack`."
    ),
    pack: str = PACK,
    base: str = OTHER_BASE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = typer.Option(0.0, "--temperature", min=0.0, help="0 is greedy."),
    seed: int = typer.Option(0, "--seed", help="Of the random draws, where the temperature is not 0."),
    batch_size: int = BATCH_SIZE,
    out: Path = typer.Option(None, "--out", "-o", help="Write JSONL here instead of standard output."),
    dtype: str = DTYPE,
    device: str = DEVICE,
    config: Path = DEFAULTS,
) -> None:
    """Answer a prompt (streamed to the terminal) or a file of prompts (JSONL out, one batch for all packs).

    A weave routes by itself unless --pack names one; a skillpack folder answers with its pack.

    **Examples**

    `skillweave generate runs/demo "Set a timer for 5 minutes."`

    `skillweave generate runs/demo --pack base "Tell me a joke."`

    `skillweave generate runs/demo --file prompts.txt -o answers.jsonl`
    """
    from skillweave.artefact import write_text
    from skillweave.base import Sampling
    from skillweave.cli.prompts import read_prompts
    from skillweave.engine import open_engine

    if (prompt is None) == (file is None):
        raise UserError("give one prompt, or a file of prompts with --file")
    if out is not None:
        if file is None:
            raise UserError("--out goes with --file; one answer is written to standard output")
        check_file(out)
    sampling = Sampling(max_new_tokens, temperature, seed=seed, batch_size=batch_size)
    asked = read_prompts(file) if file is not None else []
    engine = open_engine(target, base=base, dtype=dtype, device=device)
    if prompt is not None:
        engine.stream(prompt, pack, sampling, sys.stdout)
        return
    named = [own if own is not None else pack for _, own in asked]
    replies = engine.generate([ask for ask, _ in asked], named, sampling, label="answer")
    lines = [
        json.dumps({"prompt": ask, "pack": reply.pack or "base", "answer": reply.text}, ensure_ascii=False) + "\n"
        for (ask, _), reply in zip(asked, replies, strict=True)
    ]
    if out is None:
        sys.stdout.writelines(lines)
    else:
        write_text(out, "".join(lines))


@app.command("eval")
def eval_(
    target: str = TARGET,
    task: str = typer.Option(
        ..., "--task", "-t", help="A task: YAML or JSONL file, `builtin:...`, `reasoning-gym:...`."
    ),
    pack: str = PACK,
    base: str = OTHER_BASE,
    split: str = typer.Option("test", "--split", help="train, calibration or test."),
    limit: int = typer.Option(None, "--limit", min=1, help="The first so many prompts only."),
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    out: Path = typer.Option(None, "--out", "-o", help="Write score and answers as JSON here."),
    dtype: str = DTYPE,
    device: str = DEVICE,
    config: Path = DEFAULTS,
) -> None:
    """Score a model, a delta, a pack or a weave on a task, with a 95% interval.

    **Examples**

    `skillweave eval bundled:smollm2 --task builtin:json_calls --limit 50`

    `skillweave eval runs/demo --task builtin:json_calls --pack auto`

    `skillweave eval runs/demo/packs/json_calls --task my-data.jsonl -o score.json`
    """
    from skillweave.artefact import write_json
    from skillweave.base import Sampling
    from skillweave.cli.show import out as terminal
    from skillweave.engine import open_engine
    from skillweave.tasks import evaluate, load_task

    if out is not None:
        check_file(out)
    loaded = load_task(task)
    entries = loaded.split(split)
    engine = open_engine(target, base=base, dtype=dtype, device=device)
    sampling = Sampling(max_new_tokens, batch_size=batch_size)
    score = evaluate(
        loaded,
        lambda prompts: [r.text for r in engine.generate(prompts, [pack] * len(prompts), sampling, label="answer")],
        split=split,
        limit=limit,
    )
    terminal.print(
        f"{loaded.name}, {split}: {100 * score.mean:.1f}% "
        f"(95% interval {100 * score.low:.1f} to {100 * score.high:.1f}, {score.n} prompts)"
    )
    if out is not None:
        answers = [
            {"prompt": entry.prompt, "gold": entry.answer, "answer": text, "score": value}
            for entry, text, value in zip(entries, score.answers, score.scores, strict=False)
        ]
        figures = {"mean": score.mean, "low": score.low, "high": score.high, "n": score.n}
        write_json(out, {"task": task, "target": target, "pack": pack, "split": split, **figures, "answers": answers})
