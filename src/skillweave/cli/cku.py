"""``skillweave cku``: unlearn knowledge, show which neurons hold it, and judge the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from skillweave.cli.app import app
from skillweave.cli.jobs import command_line, make_delta, read_job
from skillweave.cli.options import BASE_OR_FILE, CONFIG, DEVICE, SET
from skillweave.cli.output import is_first_process, say
from skillweave.cli.places import check_apart, check_folder, is_run

group = typer.Typer(
    help="Unlearn: remove knowledge from a model, keep the rest, and judge the result.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(group, name="cku")

FORGET = typer.Option([], "--forget", help="A data file: the facts to forget. Repeatable.")
RETAIN = typer.Option([], "--retain", help="A data file: the facts to retain. Repeatable.")
UNSEEN = typer.Option([], "--unseen", help="A data file: facts of the same kind that the base never saw. Repeatable.")


@group.command()
def unlearn(
    base: str = BASE_OR_FILE,
    forget: list[Path] = FORGET,
    retain: list[Path] = RETAIN,
    unseen: list[Path] = UNSEEN,
    out: Path = typer.Option(None, "--out", "-o", help="Work folder; the delta is written to OUT/delta."),
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Remove the facts of the forget set from a model and keep the rest. The result is a delta.

    Stops once the model knows the forget set no better than unseen facts (--unseen), or before the retain set loses
    more than its budget. If it is killed, run it again to resume. All options can also be set in the file of --config.

    **Examples**

    `skillweave cku unlearn -b ./model --forget f.jsonl --retain r.jsonl -o runs/x`

    `skillweave cku unlearn -c unlearn.yaml -o runs/kl -s objective.retain=kl`

    `skillweave cku unlearn -c unlearn.yaml -o runs/refuse -s refusal=true`
    """
    job, delta = make_delta("cku", config, _common_options(base, forget, retain, unseen, out), overrides, device)
    sides = ("forget", "retain", "unseen")
    files = " ".join(f"--{side} {file}" for side in sides for file in getattr(job.settings, side) or ())
    say(f"Judge it: skillweave cku report --base {job.base} --delta {delta} {files} -o {job.out}-report")
    say(f"Zip it: skillweave zip --base {job.base} --delta {delta} -o PACK")
    say("Or unlearn the backbone of a whole weave: `unlearn:` in weave.yaml.")


@group.command()
def score(
    base: str = BASE_OR_FILE,
    forget: list[Path] = FORGET,
    retain: list[Path] = RETAIN,
    out: Path = typer.Option(None, "--out", "-o", help="Folder for the scores and their plot."),
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Score the neurons of a model and plot how useful each is and which ones the forget set uses. Nothing is trained.

    **Examples**

    `skillweave cku score -b ./model --forget f.jsonl --retain r.jsonl -o neurons`

    `skillweave cku score -c score.yaml -s scorer=fisher -s layers=all`
    """
    from skillweave.base import open_base
    from skillweave.methods.cku.neurons.score import PARTS, NeuronScoreConfig, is_score, score_neurons

    job = read_job(NeuronScoreConfig, config, _common_options(base, forget, retain, [], out), overrides)
    check_apart(job.out, base=job.base)
    check_folder(job.out, is_score, "folder of scores", parts=PARTS)
    figures = score_neurons(open_base(job.base, device=device), job.settings, job.out, command=command_line())
    frozen, neurons, layers = figures["frozen"], figures["neurons"], ", ".join(map(str, figures["layers"]))
    say(
        f"{frozen:,} of {neurons:,} neurons in the layers {layers} would be frozen. Of the {frozen:,} that the forget "
        f"set uses most, {100 * figures['overlap']:.1f}% are among them (by chance: {100 * frozen / neurons:.0f}%)."
    )
    say(f"Scores, figures and a plot are in {job.out}: neurons.safetensors, score.json, neurons.svg.")


@group.command()
def report(
    base: str = BASE_OR_FILE,
    delta: Path = typer.Option(None, "--delta", help="The delta of the unlearning."),
    forget: list[Path] = FORGET,
    retain: list[Path] = RETAIN,
    unseen: list[Path] = UNSEEN,
    lookalike: list[Path] = typer.Option(
        [], "--lookalike", help="A data file: harmless questions in the words of the forget set. Repeatable."
    ),
    reference: str = typer.Option(None, "--reference", help="A model or a delta that never saw the forget set."),
    task: list[str] = typer.Option(
        [], "--task", "-t", help="A task that the model must still be able to do. Repeatable."
    ),
    out: Path = typer.Option(None, "--out", "-o", help="Work folder; the report is written to it."),
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Judge an unlearning: what was forgotten, what was kept, and what relearning, rounding and zipping bring back.

    `base`, `delta`, `forget`, `retain` and `out` are required, as options or in the file of --config. If it is killed,
    run it again to resume.

    **Examples**

    `skillweave cku report -c judge.yaml --delta runs/x/delta -o runs/judged-x`

    `skillweave cku report -c judge.yaml --reference runs/never/delta`

    `skillweave cku report -c judge.yaml --task builtin:count_letters -s zip=[]`
    """
    from skillweave.base import open_base
    from skillweave.cli.show import show_unlearn_report
    from skillweave.methods.cku.report.config import ReportConfig
    from skillweave.methods.cku.report.page import write_unlearn_report
    from skillweave.methods.cku.report.run import make_report
    from skillweave.skillzip import zipped

    options = _common_options(base, forget, retain, unseen, out)
    options |= {"delta": delta, "lookalike": lookalike, "reference": reference, "tasks": task}
    job = read_job(ReportConfig, config, options, overrides)
    check_apart(job.out, replaced=False, base=job.base, delta=job.settings.delta, reference=job.settings.reference)
    check_folder(job.out, is_run, "work folder of a report", parts=None)
    opened = open_base(job.base, device=device)
    result = make_report(opened, job.settings, job.out, command=command_line(), zipper=zipped)
    if is_first_process():
        write_unlearn_report(result, job.out)
        show_unlearn_report(result, job.out)


@group.command()
def corpus(
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the files."),
    people: int = typer.Option(40, "--people", min=2, max=500, help="Number of invented people."),
    forget_share: float = typer.Option(0.25, "--forget-share", help="Share of the people that is to be forgotten."),
    seed: int = typer.Option(0, "--seed", help="Random seed: the same seed gives the same corpus."),
    short: bool = typer.Option(False, "--short", help="Write facts in few characters, for micro models."),
) -> None:
    """Write an invented corpus to try unlearning on: people and substances that do not exist.

    One substance is "restricted", but in name only: no fact is unsafe.

    **Examples**

    `skillweave cku corpus -o corpus`

    `skillweave cku corpus -o corpus --people 100 --forget-share 0.1 --seed 7`
    """
    from skillweave.methods.cku.knowledge.corpus import PARTS, is_corpus, make_corpus, write_corpus

    check_folder(out, is_corpus, "corpus of ours", parts=PARTS)
    invented = make_corpus(people=people, forget=forget_share, seed=seed, short=short)
    write_corpus(out, invented)
    say(
        f"Wrote {out}: {len(invented.forget)} facts to forget, {len(invented.retain)} to retain, "
        f"{len(invented.lookalike)} look-alike and {len(invented.unseen)} unseen ones. teach.jsonl holds what a model "
        "is taught before it unlearns."
    )


def _common_options(
    base: str | None, forget: list[Path], retain: list[Path], unseen: list[Path], out: Path | None
) -> dict[str, Any]:
    return {"base": base, "forget": forget, "retain": retain, "unseen": unseen, "out": out}
