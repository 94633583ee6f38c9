"""``skillweave cku``: take knowledge out of a model, look at its neurons, judge what came of it."""

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
    help="Unlearn: take knowledge out, freeze the neurons that hold the rest, judge the result.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(group, name="cku")

FORGET = typer.Option([], "--forget", help="JSONL: what is to go. Repeatable.")
RETAIN = typer.Option([], "--retain", help="JSONL: what must stay. Repeatable.")
UNSEEN = typer.Option([], "--unseen", help="JSONL: facts of the same kind never taught. Repeatable.")


@group.command()
def unlearn(
    base: str = BASE_OR_FILE,
    forget: list[Path] = FORGET,
    retain: list[Path] = RETAIN,
    unseen: list[Path] = UNSEEN,
    out: Path = typer.Option(None, "--out", "-o", help="Work folder; the delta is left in OUT/delta."),
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Take what the forget set holds out of a model, and leave the rest; the result is a delta.

    It ends where the forget set is known no better than what was never taught (--unseen), or before what should stay
    loses more than its budget. Killed and run again, it goes on. All of it may stand in the config's file too.

    **Examples**

    `skillweave cku unlearn -b ./model --forget f.jsonl --retain r.jsonl -o runs/x`

    `skillweave cku unlearn -c unlearn.yaml -o runs/kl -s objective.retain=kl`

    `skillweave cku unlearn -c unlearn.yaml -o runs/refuse -s refusal=true`
    """
    job, made = make_delta("cku", config, _typed(base, forget, retain, unseen, out), overrides, device)
    sides = ("forget", "retain", "unseen")
    files = " ".join(f"--{side} {file}" for side in sides for file in getattr(job.settings, side) or ())
    say(f"Judge it: skillweave cku report --base {job.base} --delta {made} {files} -o {job.out}-report")
    say(f"Zip it: skillweave zip --base {job.base} --delta {made} -o PACK")
    say("Or let a whole weave stand on it: `unlearn:` in weave.yaml.")


@group.command()
def score(
    base: str = BASE_OR_FILE,
    forget: list[Path] = FORGET,
    retain: list[Path] = RETAIN,
    out: Path = typer.Option(None, "--out", "-o", help="Folder for the scores and their drawing."),
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Score the neurons of a model and draw them: how useful each is, and what the forget set uses. Trains nothing.

    **Examples**

    `skillweave cku score -b ./model --forget f.jsonl --retain r.jsonl -o neurons`

    `skillweave cku score -c score.yaml -s scorer=fisher -s layers=all`
    """
    from skillweave.base import open_base
    from skillweave.methods.cku.neurons.score import ScoreConfig, is_score, score_neurons

    job = read_job(ScoreConfig, config, _typed(base, forget, retain, [], out), overrides)
    check_apart(job.out, base=job.base)
    check_folder(job.out, is_score, "folder of scores")
    found = score_neurons(open_base(job.base, device=device), job.settings, job.out, command=command_line())
    say(
        f"{found['frozen']:,} of {found['neurons']:,} neurons in the layers {', '.join(map(str, found['layers']))} "
        f"would be frozen; {100 * found['overlap']:.1f}% of as many that the forget set uses most are among them "
        f"(at random {100 * found['frozen'] / found['neurons']:.0f}%)."
    )
    say(f"Scores, figures and a drawing are in {job.out}: neurons.safetensors, score.json, neurons.svg.")


@group.command()
def report(
    base: str = BASE_OR_FILE,
    delta: Path = typer.Option(None, "--delta", help="The delta that unlearnt."),
    forget: list[Path] = FORGET,
    retain: list[Path] = RETAIN,
    unseen: list[Path] = UNSEEN,
    lookalike: list[Path] = typer.Option(
        [], "--lookalike", help="JSONL: harmless questions in the words of the forget set. Repeatable."
    ),
    reference: str = typer.Option(None, "--reference", help="A model, or delta, that never saw the forget set."),
    task: list[str] = typer.Option([], "--task", "-t", help="What else it must still be able to do. Repeatable."),
    out: Path = typer.Option(None, "--out", "-o", help="Work folder; the report is left in it."),
    config: Path = CONFIG,
    overrides: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """Judge an unlearning: what is forgotten, what is kept, and what relearning, rounding and zipping bring back.

    `base`, `delta`, `forget`, `retain` and `out` are needed, here or in the config's file. Killed and run again, it
    goes on.

    **Examples**

    `skillweave cku report -c judge.yaml --delta runs/x/delta -o runs/judged-x`

    `skillweave cku report -c judge.yaml --reference runs/never/delta`

    `skillweave cku report -c judge.yaml --task builtin:count_letters -s zip=[]`
    """
    from skillweave.base import open_base
    from skillweave.cli.show import show_unlearn_report
    from skillweave.methods.cku.report import ReportConfig
    from skillweave.methods.cku.report import report as judge
    from skillweave.methods.cku.report.page import write_unlearn_report
    from skillweave.skillzip import zipped

    typed = _typed(base, forget, retain, unseen, out)
    typed |= {"delta": delta, "lookalike": lookalike, "reference": reference, "tasks": task}
    job = read_job(ReportConfig, config, typed, overrides)
    check_apart(job.out, replaced=False, base=job.base, delta=job.settings.delta, reference=job.settings.reference)
    check_folder(job.out, is_run, "work folder of a report", replaced=False)
    found = judge(open_base(job.base, device=device), job.settings, job.out, command=command_line(), zipper=zipped)
    if is_first_process():
        write_unlearn_report(found, job.out)
        show_unlearn_report(found, job.out)


@group.command()
def corpus(
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the files."),
    people: int = typer.Option(40, "--people", min=2, max=500, help="Invented people that facts are told of."),
    forget_share: float = typer.Option(0.25, "--forget-share", help="Share of the people to be forgotten."),
    seed: int = typer.Option(0, "--seed", help="Of the invention: the same seed, the same corpus."),
    short: bool = typer.Option(False, "--short", help="In few characters, for micro models."),
) -> None:
    """Invent a corpus to try unlearning on: people, and substances restricted by name only, none of which exist.

    **Examples**

    `skillweave cku corpus -o corpus`

    `skillweave cku corpus -o corpus --people 100 --forget-share 0.1 --seed 7`
    """
    from skillweave.methods.cku.knowledge.corpus import is_corpus, make_corpus, write_corpus

    check_folder(out, is_corpus, "corpus of ours")
    made = make_corpus(people=people, forget=forget_share, seed=seed, short=short)
    write_corpus(out, made)
    say(
        f"Wrote {out}: {len(made.forget)} facts to forget, {len(made.retain)} to retain, {len(made.lookalike)} "
        f"look-alike and {len(made.unseen)} unseen; teach.jsonl is what a model is taught before it unlearns."
    )


def _typed(
    base: str | None, forget: list[Path], retain: list[Path], unseen: list[Path], out: Path | None
) -> dict[str, Any]:
    return {"base": base, "forget": forget, "retain": retain, "unseen": unseen, "out": out}
