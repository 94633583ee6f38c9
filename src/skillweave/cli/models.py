"""``skillweave generate`` answers prompts, ``skillweave eval`` scores answers on tasks."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from skillweave.cli.app import app
from skillweave.cli.journal import keep_replies
from skillweave.cli.options import BACKBONE, DEFAULTS, DEVICE, DTYPE, SEED, TEMPERATURE, TOP_P, read_sampling
from skillweave.cli.places import check_file, has_keys
from skillweave.cli.tools import TOOLS, open_tools
from skillweave.errors import UserError

if TYPE_CHECKING:
    from skillweave.cli.prompts import PromptRow
    from skillweave.engine import LocalEngine

TARGET = typer.Argument(..., help="A weave, skillpack or delta folder, or a model (folder, hub id, GGUF, bundled:...).")
PACK = typer.Option(None, "--pack", "-p", help="A pack's name, `auto` (the router chooses) or `base`.")
OTHER_BASE = typer.Option(
    None, "--base", "-b", help="The base model, if it is not in the place that the artefact names."
)
MAX_NEW_TOKENS = typer.Option(
    None,
    "--max-new-tokens",
    "-n",
    min=1,
    help="Longest answer, in tokens [128]; with tools all tokens after the prompt, results of tools included [1024].",
)
BATCH_SIZE = typer.Option(None, "--batch-size", min=1, help="Prompts answered together [32; with tools 64].")
MODEL_DEFAULTS = typer.Option(
    False,
    "--model-defaults",
    help="Choose tokens as the model's own generation_config.json says, instead of --temperature.",
)


@app.command()
def generate(
    target: str = TARGET,
    prompt: str = typer.Argument(None, help="The prompt. Or use --file."),
    file: Path = typer.Option(
        None,
        "--file",
        "-f",
        help="One prompt in each line; `.jsonl`, `.csv`, ...: rows with `prompt` or `messages`, and optionally `pack`.",
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
    require_audit: bool = typer.Option(
        False, "--require-audit", help="Refuse packs without an audit on their card, or with an alarm."
    ),
    out: Path = typer.Option(
        None, "--out", "-o", help="Write the answers here as JSONL, instead of to standard output."
    ),
    dtype: str = DTYPE,
    backbone: str = BACKBONE,
    device: str = DEVICE,
    config: Path = DEFAULTS,
) -> None:
    """Answer one prompt (streamed to the terminal), or a file of prompts (written as JSONL).

    The prompts of a file are answered in batches that all packs share. Without --pack, the router of a weave chooses
    the pack for each prompt, and a skillpack folder answers with its pack. With --out, each batch is kept in a file
    beside it, which ends in .partial: the same command goes on there after it was stopped or killed.

    **Examples**

    `skillweave generate runs/demo "Set a timer for 5 minutes."`

    `skillweave generate runs/demo --pack base "Tell me a joke."`

    `skillweave generate runs/demo --file prompts.txt -o answers.jsonl`

    `skillweave generate runs/demo --temperature 0.8 --seed 1 "Tell me a joke."`

    `skillweave generate runs/agent --tools calculator "What is 31 * 14 - 51?"`

    `skillweave generate my-model --model-defaults "Tell me a joke."`
    """
    if prompt is None and file is None:
        raise UserError(
            f"there is no prompt: '{target}' is the weave, pack or model that answers. Give the prompt after it, or a "
            "file of prompts with --file"
        )
    if prompt is not None and file is not None:
        raise UserError("give one prompt, or a file of prompts with --file, and not both")
    if prompt is not None and not prompt.strip():
        raise UserError("the prompt is empty: give a text to answer (a shell variable that is not set is empty too)")
    if out is not None:
        if file is None:
            raise UserError("--out goes with --file; one answer is written to standard output")
        check_file(out, file, tools, ours=has_keys("prompt", "pack", "answer", "ended"), kind="a file of answers")
    sampling = read_sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        batch_size=batch_size,
        model_defaults=model_defaults,
    )
    from skillweave.artefact import write_text
    from skillweave.cli.prompts import PromptRow, read_prompts
    from skillweave.cli.show import show_conversation, show_cut_off
    from skillweave.engine import open_engine
    from skillweave.terminal import harmless_json

    rows = read_prompts(file) if file is not None else [PromptRow(prompt, None, "")]
    with ExitStack() as stack:
        opened = stack.enter_context(open_tools(tools, max_tokens=max_new_tokens, batch_size=batch_size))
        engine = open_engine(
            target, base=base, dtype=dtype, backbone=backbone, device=device, require_audit=require_audit
        )
        prompts = [row.prompt for row in rows]
        packs = [_pack_of(engine, row, pack) for row in rows]
        if file is None and opened is None:
            show_cut_off([engine.stream(prompt, packs[0], sampling, sys.stdout)])
            return
        journal = stack.enter_context(keep_replies(out, engine, [opened], [prompts, packs, asdict(sampling)]))
        replies = engine.weave.generate(prompts, packs, sampling, tools=opened, journal=journal(0), label="answer")
        if file is None:  # with tools, because otherwise the answer was streamed
            show_conversation(replies[0])
            return
        show_cut_off(replies)
        records = [
            {"prompt": text, "pack": reply.pack or "base", "answer": reply.text, **reply.record}
            for text, reply in zip(prompts, replies, strict=True)
        ]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in records]
        if out is None:
            sys.stdout.writelines(map(harmless_json, lines) if sys.stdout.isatty() else lines)
        else:
            write_text(out, "".join(lines))


def _pack_of(engine: LocalEngine, row: PromptRow, pack: str | None) -> str | None:
    """The pack that answers a row: the one that it names, else that of --pack."""
    if row.pack is None:
        return engine.pack_named(pack)
    named = engine.pack_named(row.pack)
    try:
        engine.weave.check_pack(named)
    except UserError as error:
        raise UserError(f"{row.where}: {error}") from error
    return named


@app.command("eval")
def eval_(
    target: str = TARGET,
    task: list[str] = typer.Option(
        ...,
        "--task",
        "-t",
        help="A data file, YAML file, `builtin:...`, `reasoning-gym:...` or `dataset:...`. May be repeated.",
    ),
    pack: str = PACK,
    base: str = OTHER_BASE,
    split: str = typer.Option("test", "--split", help="train, calibration or test."),
    limit: int = typer.Option(None, "--limit", min=1, help="Score only this many prompts, the first ones."),
    few_shot: int = typer.Option(
        0, "--few-shot", min=0, help="Number of solved examples of the train split before each prompt, drawn by --seed."
    ),
    samples: int = typer.Option(
        1,
        "--samples",
        min=1,
        help="Answers drawn for each prompt; more than 1 also gives pass@k and the majority vote.",
    ),
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    seed: int = SEED,
    tools: str = TOOLS,
    max_new_tokens: int = MAX_NEW_TOKENS,
    model_defaults: bool = MODEL_DEFAULTS,
    batch_size: int = BATCH_SIZE,
    out: Path = typer.Option(None, "--out", "-o", help="Write the scores and every answer here, as JSON."),
    dtype: str = DTYPE,
    backbone: str = BACKBONE,
    device: str = DEVICE,
    config: Path = DEFAULTS,
) -> None:
    """Score a model, a delta, a pack or a weave on tasks, with 95% intervals over the prompts.

    With --out, each batch of answers is kept in a file beside it, which ends in .partial: the same command goes on
    there after it was stopped or killed.

    With several --samples for each prompt, the command also reports pass@k, the chance that one of k answers is right,
    and the score of the answer that most samples agree on. If a task brings tools, the model may call them; for other
    tasks --tools gives them.

    **Examples**

    `skillweave eval bundled:smollm2 --task builtin:json_calls --limit 50`

    `skillweave eval runs/demo -t builtin:json_calls -t builtin:sort_numbers`

    `skillweave eval runs/demo --task builtin:json_calls --pack auto`

    `skillweave eval runs/demo/packs/json_calls --task my-data.jsonl -o score.json`

    `skillweave eval bundled:smollm2 --task my-data.jsonl --few-shot 4`

    `skillweave eval bundled:smollm2 -t my-data.jsonl --samples 8 --temperature 1`

    `skillweave eval runs/steps/delta --task builtin:steps --limit 50`
    """
    ours, kind = has_keys("target", "split"), "a result of `skillweave eval`"
    if out is not None:
        check_file(out, *task, tools, ours=ours, kind=kind)
    sampling = read_sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        batch_size=batch_size,
        samples=samples,
        model_defaults=model_defaults,
    )
    from skillweave.artefact import write_json
    from skillweave.cli.scoring import Examples, asked_of, rate
    from skillweave.cli.show import show_rated
    from skillweave.engine import open_engine
    from skillweave.tasks import load_task
    from skillweave.tasks.spec import FileSpec

    repeated = next((one for one in task if task.count(one) > 1), None)
    if repeated is not None:
        raise UserError(f"--task {repeated} is given twice: name each task once")
    tasks = [load_task(one) for one in task]
    if out is not None:
        files = (file for one in tasks if isinstance(one.spec, FileSpec) for file in one.spec.files)
        check_file(out, *files, ours=ours, kind=kind)
    for one in tasks:
        one.split(split)  # raises for an empty split, before the model is opened
    few_shot_examples = [Examples.of(one, few_shot, seed) for one in tasks]
    settings = {
        "target": target,
        "pack": pack,
        "split": split,
        "few_shot": few_shot,
        "samples": samples,
        "temperature": temperature,
        "top_p": sampling.top_p,
        "model_defaults": model_defaults,
        "seed": seed,
    }
    rated = []
    with ExitStack() as stack:
        opened = [
            stack.enter_context(open_tools(tools, one, max_tokens=max_new_tokens, batch_size=batch_size))
            for one in tasks
        ]
        engine = open_engine(target, base=base, dtype=dtype, backbone=backbone, device=device)
        asked = [asked_of(one, examples, split, limit) for one, examples in zip(tasks, few_shot_examples, strict=True)]
        journal = stack.enter_context(keep_replies(out, engine, opened, [settings, asdict(sampling), asked]))
        for number, (name, one, examples, own_tools) in enumerate(
            zip(task, tasks, few_shot_examples, opened, strict=True)
        ):
            rated.append(
                rate(
                    engine,
                    pack,
                    name,
                    one,
                    own_tools,
                    examples,
                    sampling,
                    journal(number),
                    split=split,
                    limit=limit,
                    samples=samples,
                )
            )
            if out is not None:  # written after each task, because the next one may take hours
                records = [done.record(settings) for done in rated]
                write_json(out, records[0] if len(task) == 1 else {**settings, "tasks": records})
    show_rated(rated, split)
