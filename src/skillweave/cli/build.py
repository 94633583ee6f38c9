"""``skillweave build`` and ``skillweave demo``."""

from __future__ import annotations

from pathlib import Path

import typer

from skillweave.cli.app import app
from skillweave.cli.jobs import command_line
from skillweave.cli.options import SET
from skillweave.cli.places import check_place
from skillweave.errors import UserError

OUT = typer.Option(..., "--out", "-o", help="The weave folder to write. Steps that are done there already are kept.")


@app.command()
def build(
    config: Path = typer.Argument(..., metavar="WEAVE.YAML", help="The settings: base, skills, zip, router."),
    out: Path = OUT,
    plan: bool = typer.Option(False, "--plan", help="Print which steps are done and which are not; run nothing."),
    overrides: list[str] = SET,
) -> None:
    """Grow every skill of a weave.yaml, zip them, fit the router, and write a folder that can be served.

    Steps that are done and unchanged are skipped; a killed build resumes where it stopped. With --plan the steps are
    only listed: done, to do, begun, or to be done again because an input changed, and how long each took last time.

    **Examples**

    `skillweave build weave.yaml -o weaves/mine`

    `skillweave build weave.yaml -o weaves/mine --plan`

    `skillweave build weave.yaml -o weaves/mine --set zip.ratio=1/64 --set seed=1`
    """
    from skillweave.cli.show import show_plan, show_report
    from skillweave.pipeline import build as run_build
    from skillweave.pipeline import plan_build, read_weave_config
    from skillweave.pipeline.report import HELD_BACK

    if plan:
        show_plan(plan_build(read_weave_config(str(config), overrides), out))
        return
    check_place(out)
    report = run_build(read_weave_config(str(config), overrides), out, command=command_line())
    show_report(report, out)
    if held := report.get("held_back"):
        raise UserError(f"{HELD_BACK.format(', '.join(held))} The others are in {out}. The evidence is in the report.")


@app.command()
def demo(
    out: Path = typer.Option(Path("runs/demo"), "--out", "-o", help="The weave folder to write."),
    overrides: list[str] = SET,
) -> None:
    """Run the main job on a real model: three skills for SmolLM2-135M, in about ten minutes on two CPU cores.

    Grows the specialists, zips them, routes a mixed batch, shows base and weave side by side, and asks
    all of them through a server. Run it again after an interruption, and it resumes.

    **Examples**

    `skillweave demo`

    `skillweave demo -o /tmp/demo --set zip.ratio=1/64`
    """
    from skillweave.cli.show import show_report, show_served, show_side_by_side
    from skillweave.demo import build_demo, mixed_answers, served_answers

    check_place(out)
    report = build_demo(out, overrides, command=command_line())
    show_side_by_side(mixed_answers(out, overrides))
    show_served(served_answers(out, overrides))
    show_report(report, out)
