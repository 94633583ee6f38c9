"""``skillweave generate`` and ``eval``: ask, score."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from skillweave.cli.app import app
from skillweave.cli.options import DEFAULTS, DEVICE, DTYPE
from skillweave.cli.places import check_file
from skillweave.cli.tools import TOOLS, answered, open_tools
from skillweave.errors import UserError

if TYPE_CHECKING:
    from skillweave.base import Prompt
    from skillweave.weave import Reply

TARGET = typer.Argument(..., help="A weave, skillpack or delta folder, or a model (folder, hub id, GGUF, bundled:...).")
PACK = typer.Option(None, "--pack", "-p", help="A pack's name, `auto` (the router chooses) or `base`.")
OTHER_BASE = typer.Option(None, "--base", "-b", help="The base, where it is not at the place the artefact names.")
MAX_NEW_TOKENS = typer.Option(
    None,
    "--max-new-tokens",
    "-n",
    min=1,
    help="Longest answer, in tokens [128]; with tools all that comes after the prompt, what they say included [1024].",
)
BATCH_SIZE = typer.Option(None, "--batch-size", min=1, help="Prompts answered together [32; with tools 64].")
MODEL_DEFAULTS = typer.Option(
    False,
    "--model-defaults",
    help="Sample as the model's own generation_config.json says, in place of --temperature.",
)


@app.command()
def generate(
    target: str = TARGET,
    prompt: str = typer.Argument(None, help="What to ask. Or --file."),
    file: Path = typer.Option(
        None, "--file", "-f", help="One prompt a line; `.jsonl`: objects with `prompt` or `messages`, and `pack`."
    ),
    pack: str = PACK,
    base: str = OTHER_BASE,
    tools: str = TOOLS,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = typer.Option(0.0, "--temperature", min=0.0, help="0 is greedy."),
    model_defaults: bool = MODEL_DEFAULTS,
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

    `skillweave generate runs/agent --tools calculator "What is 31 * 14 - 51?"`

    `skillweave generate my-model --model-defaults "Tell me a joke."`
    """
    from skillweave.artefact import write_text
    from skillweave.base import Sampling
    from skillweave.cli.prompts import read_prompts
    from skillweave.cli.show import show_conversation
    from skillweave.engine import open_engine
    from skillweave.weave import ToolReply

    if (prompt is None) == (file is None):
        raise UserError("give one prompt, or a file of prompts with --file")
    if out is not None:
        if file is None:
            raise UserError("--out goes with --file; one answer is written to standard output")
        check_file(out)
    if model_defaults and temperature:
        raise UserError("--model-defaults takes the temperature from the model's file: leave out --temperature")
    sampling = Sampling(
        max_new_tokens or 128, temperature, seed=seed, batch_size=batch_size or 32, model_defaults=model_defaults
    )  # fmt: skip
    asked = read_prompts(file) if file is not None else [(prompt, None)]
    prompts, named = [ask for ask, _ in asked], [pack if own is None else own for _, own in asked]
    with open_tools(tools, max_tokens=max_new_tokens, batch_size=batch_size) as opened:
        engine = open_engine(target, base=base, dtype=dtype, device=device)
        if file is None and opened is None:
            engine.stream(prompt, pack, sampling, sys.stdout)
            return
        replies = answered(engine, prompts, named, sampling, opened)
    if isinstance(replies[0], ToolReply) and file is None:
        show_conversation(replies[0])
        return
    rows = [
        {"prompt": ask, "pack": reply.pack or "base", "answer": reply.text, **reply.with_tools}
        for ask, reply in zip(prompts, replies, strict=True)
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
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
    tools: str = TOOLS,
    max_new_tokens: int = MAX_NEW_TOKENS,
    model_defaults: bool = MODEL_DEFAULTS,
    batch_size: int = BATCH_SIZE,
    out: Path = typer.Option(None, "--out", "-o", help="Write score and answers as JSON here."),
    dtype: str = DTYPE,
    device: str = DEVICE,
    config: Path = DEFAULTS,
) -> None:
    """Score a model, a delta, a pack or a weave on a task, with a 95% interval.

    A task that brings tools is asked with them; to another one they are given by --tools.

    **Examples**

    `skillweave eval bundled:smollm2 --task builtin:json_calls --limit 50`

    `skillweave eval runs/demo --task builtin:json_calls --pack auto`

    `skillweave eval runs/demo/packs/json_calls --task my-data.jsonl -o score.json`

    `skillweave eval runs/steps/delta --task builtin:steps --limit 50`
    """
    from skillweave.artefact import write_json
    from skillweave.base import Sampling
    from skillweave.cli.show import show_score
    from skillweave.engine import open_engine
    from skillweave.tasks import evaluate, load_task

    if out is not None:
        check_file(out)
    loaded = load_task(task)
    entries = loaded.asked(split)
    sampling = Sampling(max_new_tokens or 128, batch_size=batch_size or 32, model_defaults=model_defaults)
    replies: list[Reply] = []
    with open_tools(tools, loaded, max_tokens=max_new_tokens, batch_size=batch_size) as opened:
        engine = open_engine(target, base=base, dtype=dtype, device=device)

        def texts(prompts: list[Prompt]) -> list[str | None]:
            replies[:] = answered(engine, prompts, [pack] * len(prompts), sampling, opened)
            return [reply.answer for reply in replies]

        score = evaluate(loaded, texts, split=split, limit=limit)
    show_score(loaded.name, split, score, replies)
    if out is not None:
        answers = [
            {"prompt": entry.prompt, "gold": entry.answer, "answer": reply.text, "score": value, **reply.with_tools}
            for entry, reply, value in zip(entries, replies, score.scores, strict=False)
        ]
        figures = {"mean": score.mean, "low": score.low, "high": score.high, "n": score.n}
        write_json(out, {"task": task, "target": target, "pack": pack, "split": split, **figures, "answers": answers})
