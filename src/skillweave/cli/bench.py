"""``skillweave bench serve`` measures a server under load."""

from __future__ import annotations

from pathlib import Path

import typer

from skillweave.cli.app import app
from skillweave.cli.chat import KEY_FILE, checked_url, client_key
from skillweave.cli.options import SEED, named_values
from skillweave.cli.output import say
from skillweave.cli.places import check_file, has_keys
from skillweave.errors import UserError

bench = typer.Typer(no_args_is_help=True, help="Measure servers: `serve` sends requests and times the answers.")
app.add_typer(bench, name="bench")


@bench.callback()
def _group() -> None:
    """Keep `serve` a command of its own; with one command alone, typer would leave out its name."""


@bench.command("serve")
def bench_serve(
    url: str = typer.Argument(..., help="The server, for example http://127.0.0.1:8000/v1."),
    requests: int = typer.Option(64, "--requests", "-r", min=1, help="How many requests are sent."),
    rate: float = typer.Option(
        None, "--rate", min=0.001, help="Requests a second, which arrive at random (Poisson) and do not wait."
    ),
    concurrency: int = typer.Option(None, "--concurrency", min=1, help="Requests at once, without --rate [8]."),
    mix: list[str] = typer.Option(
        [], "--mix", metavar="NAME=SHARE", help="Shares of the models: `a=0.7,b=0.3`. Without it, all get the same."
    ),
    prompt_tokens: int = typer.Option(
        None, "--prompt-tokens", min=1, help="About so many tokens a prompt: that many random words [32]."
    ),
    prompts: Path = typer.Option(
        None, "--prompts", "-f", help="A file of prompts, one in each line or as JSONL; they are drawn at random."
    ),
    max_tokens: int = typer.Option(64, "--max-tokens", "-n", min=1, help="Longest answer, in tokens."),
    temperature: float = typer.Option(
        0.0, "--temperature", min=0.0, max=2.0, help="0 is greedy. Servers take more time to draw tokens."
    ),
    seed: int = SEED,
    timeout: float = typer.Option(300.0, "--timeout", min=0.1, help="Seconds until a request counts as failed."),
    out: Path = typer.Option(None, "--out", "-o", help="Also write the figures and every request here, as JSON."),
    api_key_file: Path = KEY_FILE,
) -> None:
    """Send requests to a server and report its times: percentiles of the first token, each token and the whole.

    Any server that speaks OpenAI's API and streams can be measured. Ends with 1 if a request failed.

    **Examples**

    `skillweave bench serve http://127.0.0.1:8000/v1 --requests 200 --rate 5`

    `skillweave bench serve http://127.0.0.1:8000/v1 --concurrency 16 -n 128`

    `skillweave bench serve http://127.0.0.1:8000/v1 --mix sort=0.7,base=0.3`
    """
    if rate is not None and concurrency is not None:
        raise UserError(
            "--rate sends requests at their own times, so --concurrency has no effect: leave one of them out"
        )
    if prompts is not None and prompt_tokens is not None:
        raise UserError("--prompts gives the prompts, so --prompt-tokens has no effect: leave one of them out")
    if out is not None:
        check_file(out, prompts, ours=has_keys("plan", "figures"), kind="a load test of `skillweave bench serve`")
    shares = _shares(mix)
    import asyncio

    from skillweave.artefact import write_json
    from skillweave.cli.show_load import show_load
    from skillweave.serve.load import LoadPlan, measure

    plan = LoadPlan(
        shares,
        requests,
        rate,
        concurrency or 8,
        () if prompts is None else _texts(prompts),
        prompt_tokens or 32,
        max_tokens,
        temperature,
        seed,
        timeout,
    )
    result = asyncio.run(measure(checked_url(url), client_key(api_key_file), plan))
    show_load(result["figures"])
    if out is not None:
        write_json(out, result)
        say(f"All requests are in {out}.")
    if result["figures"]["answered"] < requests:
        raise typer.Exit(1)


def _shares(mix: list[str]) -> dict[str, float]:
    """The shares that ``--mix`` names."""
    shares = {}
    for name, share in named_values([one for text in mix for one in text.split(",")], "--mix", "NAME=SHARE").items():
        try:
            shares[name] = float(share)
        except ValueError:
            raise UserError(f"--mix {name}={share}: the share is no number: write for example {name}=0.7") from None
    return shares


def _texts(file: Path) -> tuple[str, ...]:
    """The prompts of a file, which must all be texts."""
    from skillweave.cli.prompts import read_prompts

    prompts = [row.prompt for row in read_prompts(file)]
    others = sum(not isinstance(prompt, str) for prompt in prompts)
    if others:
        raise UserError(f"{file}: {others} of {len(prompts)} prompts are messages: write texts, one in each line")
    return tuple(map(str, prompts))
