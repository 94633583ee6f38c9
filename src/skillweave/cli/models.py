"""``skillweave generate`` and ``eval``: ask, score."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import typer

from skillweave.cli.app import app
from skillweave.cli.options import DEFAULTS, DEVICE, DTYPE, SEED, TEMPERATURE, TOP_P, read_sampling
from skillweave.cli.places import check_file
from skillweave.cli.tools import TOOLS, open_tools
from skillweave.errors import UserError

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
        None,
        "--file",
        "-f",
        help="One prompt a line; `.jsonl`, `.csv`, ...: rows with `prompt` or `messages`, and `pack`.",
    ),
    pack: str = PACK,
    base: str = OTHER_BASE,
    tools: str = TOOLS,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    model_defaults: bool = MODEL_DEFAULTS,
    seed: int = SEED,
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

    `skillweave generate runs/demo --temperature 0.8 --seed 1 "Tell me a joke."`

    `skillweave generate runs/agent --tools calculator "What is 31 * 14 - 51?"`

    `skillweave generate my-model --model-defaults "Tell me a joke."`
    """
    if (prompt is None) == (file is None):
        raise UserError("give one prompt, or a file of prompts with --file")
    if out is not None:
        if file is None:
            raise UserError("--out goes with --file; one answer is written to standard output")
        check_file(out)
    sampling = read_sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, batch_size=batch_size,
        model_defaults=model_defaults,
    )  # fmt: skip
    from skillweave.artefact import write_text
    from skillweave.cli.prompts import read_prompts
    from skillweave.cli.show import show_conversation, show_cut_off
    from skillweave.engine import open_engine
    from skillweave.terminal import harmless_json

    asked = read_prompts(file) if file is not None else [(prompt, None)]
    prompts = [ask for ask, _ in asked]
    with open_tools(tools, max_tokens=max_new_tokens, batch_size=batch_size) as opened:
        engine = open_engine(target, base=base, dtype=dtype, device=device)
        if file is None and opened is None:
            show_cut_off([engine.stream(prompt, engine.pack_named(pack), sampling, sys.stdout)])
            return
        packs = [engine.pack_named(pack if own is None else own) for _, own in asked]
        replies = engine.weave.generate(prompts, packs, sampling, tools=opened, label="answer")
    if file is None:
        show_conversation(replies[0])
        return
    show_cut_off(replies)
    rows = [
        {"prompt": ask, "pack": reply.pack or "base", "answer": reply.text, **reply.record}
        for ask, reply in zip(prompts, replies, strict=True)
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    if out is None:
        sys.stdout.writelines(map(harmless_json, lines) if sys.stdout.isatty() else lines)
    else:
        write_text(out, "".join(lines))


@app.command("eval")
def eval_(
    target: str = TARGET,
    task: list[str] = typer.Option(
        ...,
        "--task",
        "-t",
        help="A data file, YAML file, `builtin:...`, `reasoning-gym:...` or `dataset:...`. Repeatable.",
    ),
    pack: str = PACK,
    base: str = OTHER_BASE,
    split: str = typer.Option("test", "--split", help="train, calibration or test."),
    limit: int = typer.Option(None, "--limit", min=1, help="The first so many prompts only."),
    few_shot: int = typer.Option(
        0, "--few-shot", min=0, help="Solved examples of the train split before each prompt, drawn by --seed."
    ),
    samples: int = typer.Option(
        1, "--samples", min=1, help="Answers drawn for each prompt: gives pass@k and the vote of the majority."
    ),
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    seed: int = SEED,
    tools: str = TOOLS,
    max_new_tokens: int = MAX_NEW_TOKENS,
    model_defaults: bool = MODEL_DEFAULTS,
    batch_size: int = BATCH_SIZE,
    out: Path = typer.Option(None, "--out", "-o", help="Write the scores and every answer as JSON here."),
    dtype: str = DTYPE,
    device: str = DEVICE,
    config: Path = DEFAULTS,
) -> None:
    """Score a model, a delta, a pack or a weave on tasks, with 95% intervals over the prompts.

    Several --samples of each prompt give pass@k, the chance that one of k is right, and the score of the answer that
    most of them agree with. A task that brings tools is asked with them; to another one they are given by --tools.

    **Examples**

    `skillweave eval bundled:smollm2 --task builtin:json_calls --limit 50`

    `skillweave eval runs/demo -t builtin:json_calls -t builtin:sort_numbers`

    `skillweave eval runs/demo --task builtin:json_calls --pack auto`

    `skillweave eval runs/demo/packs/json_calls --task my-data.jsonl -o score.json`

    `skillweave eval bundled:smollm2 --task my-data.jsonl --few-shot 4`

    `skillweave eval bundled:smollm2 -t my-data.jsonl --samples 8 --temperature 1`

    `skillweave eval runs/steps/delta --task builtin:steps --limit 50`
    """
    if out is not None:
        check_file(out)
    sampling = read_sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, batch_size=batch_size,
        samples=samples, model_defaults=model_defaults,
    )  # fmt: skip
    from skillweave.artefact import write_json
    from skillweave.cli.scoring import Examples, rate
    from skillweave.cli.show import show_rated
    from skillweave.engine import open_engine
    from skillweave.tasks import load_task

    twice = next((one for one in task if task.count(one) > 1), None)
    if twice is not None:
        raise UserError(f"--task {twice} is given twice: name each task once")
    loaded = [load_task(one) for one in task]
    for one in loaded:
        one.split(split)  # an empty one is told before the model is opened
    shown = [Examples.of(one, few_shot, seed) for one in loaded]
    asked = {"target": target, "pack": pack, "split": split, "few_shot": few_shot, "samples": samples}
    asked |= {"temperature": temperature, "top_p": sampling.top_p, "model_defaults": model_defaults, "seed": seed}
    rated = []
    with ExitStack() as opened:
        boxes = [
            opened.enter_context(open_tools(tools, one, max_tokens=max_new_tokens, batch_size=batch_size))
            for one in loaded
        ]
        engine = open_engine(target, base=base, dtype=dtype, device=device)
        for name, one, examples, box in zip(task, loaded, shown, boxes, strict=True):
            rated.append(
                rate(engine, pack, name, one, box, examples, sampling, split=split, limit=limit, samples=samples)
            )
            if out is not None:  # after each, for a later one may take hours
                records = [done.record(asked) for done in rated]
                write_json(out, records[0] if len(task) == 1 else {**asked, "tasks": records})
    show_rated(rated, split)
