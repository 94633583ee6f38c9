"""``skillweave reason`` finds the rules behind examples, ``skillweave induction`` generates such problems."""

from __future__ import annotations

from pathlib import Path

import typer

from skillweave.cli.app import app
from skillweave.cli.models import OTHER_BASE
from skillweave.cli.options import CONFIG, DEFAULTS, DEVICE, DTYPE, SEED, SET, named_values
from skillweave.cli.output import say
from skillweave.cli.places import check_file, check_folder, has_keys
from skillweave.errors import UserError


@app.command()
def reason(
    tasks: str = typer.Argument(
        None, help="Problems: a JSONL or JSON file, a folder of ARC tasks, or `reasoning-gym:list_functions`."
    ),
    model: str = typer.Option(
        None,
        "--model",
        "-m",
        help="Who answers the agents: `URL#NAME` (an OpenAI-compatible server; its key comes from OPENAI_API_KEY), or "
        "a model, delta, pack or weave for this process; `WEAVE#PACK` names a pack.",
    ),
    agent: list[str] = typer.Option(
        [],
        "--agent",
        metavar="ROLE=MODEL",
        help="Another model for one agent: `critic=http://...#big`. Repeatable.",
    ),
    method: str = typer.Option("matsir", "--method", help="matsir, rex, direct-python, best-of-n, refinement, ..."),
    budget: str = typer.Option(
        "calls=64", "--budget", help="What each problem may use: `calls=64,tokens=20k,seconds=30`."
    ),
    prompts: str = typer.Option(
        "general", "--prompts", help="`general`, `induction` (for the skill of that name), or a folder of templates."
    ),
    form: str = typer.Option(
        "program", "--form", help="program: agents write the function at once; rule: first the rule in words."
    ),
    temperature: float = typer.Option(1.0, "--temperature", min=0.0, help="Of all agents."),
    max_tokens: int = typer.Option(512, "--max-tokens", "-n", min=1, help="The longest answer of an agent."),
    overrides: list[str] = SET,
    seed: int = SEED,
    limit: int = typer.Option(None, "--limit", min=1, help="Only so many problems, the first ones."),
    at_once: int = typer.Option(64, "--at-once", min=1, help="Problems that are searched at the same time."),
    parallel: int = typer.Option(4, "--parallel", min=1, help="Expansions in flight for each problem."),
    votes: int = typer.Option(
        1, "--votes", min=1, help="Search on until so many programs solve all examples, and let them vote."
    ),
    out: Path = typer.Option(None, "--out", "-o", help="The run's folder [runs/reason/TASKS-METHOD]."),
    harvest: Path = typer.Option(
        None, "--harvest", help="Write the run's programs there as training rows for the next `induction` pack."
    ),
    show: bool = typer.Option(False, "--show", help="Draw the search in the terminal while it runs."),
    write_prompts: Path = typer.Option(
        None, "--write-prompts", help="Only write the templates of --prompts into this new folder, to edit them."
    ),
    base: str = OTHER_BASE,
    batch_size: int = typer.Option(32, "--batch-size", min=1, help="Requests that the local engine answers together."),
    concurrency: int = typer.Option(16, "--concurrency", min=1, help="Requests to a server at the same time."),
    timeout: float = typer.Option(120.0, "--timeout", min=0.1, help="Seconds that a request to a server may take."),
    retries: int = typer.Option(5, "--retries", min=0, help="How often a failed request to a server is sent again."),
    dtype: str = DTYPE,
    device: str = DEVICE,
    config: Path = DEFAULTS,
) -> None:
    """Find the rule behind examples as a program, and apply it to held-out inputs.

    Each problem is searched within its own budget. The test pairs are opened when its search has ended. The run's
    folder gets one page with all trees (`report.html`). A run that was killed goes on when it is started again, and
    pays for no answer twice.

    **Examples**

    `skillweave reason problems.jsonl -m http://localhost:8000/v1#my-model`

    `skillweave reason problems.jsonl -m ./model --budget calls=64,tokens=20k`

    `skillweave reason problems.jsonl -m runs/induction --prompts induction`

    `skillweave reason reasoning-gym:acre --limit 20 --method rex -m ./model`

    `skillweave reason problems.jsonl -m ./model -s critic=true --show`

    `skillweave reason --write-prompts my-prompts`
    """
    from skillweave.reason.agents.prompt_set import PromptSet

    if write_prompts is not None:
        PromptSet.named(prompts).write(write_prompts)
        say(f"Edit the templates in {write_prompts}, and use them with --prompts {write_prompts}")
        return
    if tasks is None or model is None:
        raise UserError("name a file of problems and --model: skillweave reason problems.jsonl --model URL#NAME")
    if harvest is not None:
        ours = has_keys("prompt", "answer", kind=("program", "refine"))
        check_file(harvest, tasks, config, ours=ours, kind="a harvest", called="--harvest")
    folder = out or Path("runs/reason") / f"{Path(tasks.replace(':', '-')).stem}-{method}"
    # A run whose server could not be reached has no run.json yet.
    begun = ("run.json", "answers.sqlite")
    check_folder(
        folder,
        lambda place: any((place / name).is_file() for name in begun),
        "run of `skillweave reason`",
        parts=None,
    )
    from skillweave.cli.show import show_reason
    from skillweave.config import read_config
    from skillweave.reason.budget import parse_budget
    from skillweave.reason.config import ReasonConfig
    from skillweave.reason.harvest import harvest as gather
    from skillweave.reason.harvest import write_harvest
    from skillweave.reason.job import reason as run

    typed = {
        "tasks": tasks,
        "limit": limit,
        "out": folder,
        "model": model,
        "agent_models": named_values(agent, "--agent", "ROLE=MODEL, for example critic=http://host/v1#name"),
        "method": method,
        "budget": parse_budget(budget).model_dump(),
        "prompts": prompts,
        "agents": {"form": form, "temperature": temperature, "max_tokens": max_tokens},
        "seed": seed,
        "at_once": at_once,
        "parallel": parallel,
        "votes": votes,
        "concurrency": concurrency,
        "timeout": timeout,
        "retries": retries,
        "base": base,
        "dtype": dtype,
        "device": device,
        "batch_size": batch_size,
        "watch": "tree" if show else "bar",
    }
    settings = read_config(ReasonConfig, typed, [f"settings.{override}" for override in overrides], called="reason")
    result = run(settings)
    if harvest is not None:
        found = gather(result.traces, PromptSet.named(prompts))
        write_harvest(harvest, found)
        say(f"harvest: {len(found.rows):,} rows in {harvest}")
        for line in found.left_out:
            say(f"  {line}")
    show_reason(result, folder)
    if result.summary.unfinished:
        raise typer.Exit(1)


@app.command()
def induction(
    out: Path = typer.Argument(None, help="The new folder."),
    config: Path = CONFIG,
    overrides: list[str] = SET,
) -> None:
    """Generate induction problems, and the rows that teach a small model to solve them.

    Writes `rows.jsonl` (training rows for every agent), `problems.jsonl` (test problems), `practice.jsonl` (problems
    for `reason --harvest`) and `induction.json` (settings, counts, hashes). No program is in two of these files;
    programs are compared by what they do on fixed inputs.

    **Examples**

    `skillweave induction runs/induction-data`

    `skillweave induction runs/small -s rows=500 -s tasks=10 -s practice=0`
    """
    from skillweave.config import read_config
    from skillweave.reason.induction.config import InductionConfig
    from skillweave.reason.induction.write import write_induction

    if out is None:
        raise UserError("name the new folder: skillweave induction runs/induction-data")
    facts = write_induction(out, read_config(InductionConfig, config, overrides))
    for name, count in facts["counts"].items():
        say(f"{out / name}: {count:,} lines")
    say("Train on them: skillweave build examples/induction/weave.yaml -o runs/induction")
