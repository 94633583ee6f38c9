"""Print the results of commands: reports, scores, conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from skillweave.cli.output import out
from skillweave.cli.scoring import Rated
from skillweave.methods.cku.report.page import short_probe_table, short_unlearn_table
from skillweave.pipeline.plan import PlannedStep
from skillweave.pipeline.report import short_skill_table
from skillweave.pipeline.speed import speed_note
from skillweave.progress import console, share_of
from skillweave.reason.job import ReasonResult
from skillweave.report import Table
from skillweave.tasks.evaluate import Figure
from skillweave.terminal import harmless, printable
from skillweave.units import human_bytes, human_seconds
from skillweave.weave import BASE, Reply


def show_report(report: dict[str, Any], folder: Path) -> None:
    """Print the scores of a build, its memory and speed, and where the weave and the report are."""
    memory, router = report["memory"], report["router"]
    out.print()
    out.print(short_skill_table(report).rich(title="Mean scores on the test prompts, in percent"))
    out.print(
        f"In memory: base {human_bytes(memory['base_bytes'])}, weave {human_bytes(memory['weave_bytes'])} "
        f"({memory['weave_bytes'] / memory['base_bytes']:.2f}x), "
        f"{len(report['skills'])} separate models {human_bytes(memory['separate_bytes'])}."
    )
    out.print(f"Speed: {speed_note(report['speed'], len(report['skills']))}")
    out.print(
        f"Router: {100 * router['accuracy']:.1f}% of the test prompts to their own skill, "
        f"{100 * router['abstained']:.1f}% left to the base."
    )
    out.print(f"The weave is in {folder}; the report in {folder / 'report.html'}.", soft_wrap=True)
    out.print(f'Ask it something: skillweave generate {folder} "your prompt"', soft_wrap=True)


def show_plan(steps: Sequence[PlannedStep]) -> None:
    """Print the steps of a build with their states, and the totals."""
    table = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("step", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("last time", justify="right", no_wrap=True)
    table.add_column("because of", overflow="fold")
    for step in steps:
        took = "-" if step.seconds is None else human_seconds(step.seconds)
        more = f" and {len(step.because) - 1} more" if len(step.because) > 1 else ""
        table.add_row(*map(Text, (step.name, step.state, took, "".join(step.because[:1]) + more)))
    out.print(table)
    totals = []
    for state in dict.fromkeys(step.state for step in steps):
        group = [step for step in steps if step.state == state]
        seconds = [step.seconds for step in group if step.seconds is not None]
        took = f" (last time {human_seconds(sum(seconds))})" if seconds else ""
        totals.append(f"{len(group)} {state}{took}")
    out.print(f"{len(steps)} steps: {', '.join(totals)}.", soft_wrap=True)
    if any(step.state == "perhaps again" for step in steps):
        out.print("Perhaps again: only if the steps named beside it give another result than last time.")


def show_unlearn_report(report: dict[str, Any], folder: Path) -> None:
    """Print the figures of both sets, what the probes brought back, and where the report is."""
    out.print()
    out.print(short_unlearn_table(report).rich(title="What is forgotten, and what is kept"))
    out.print()
    out.print(short_probe_table(report).rich(title="What the probes bring back: extraction strength"))
    out.print(f"The report is in {folder / 'report.html'}.", soft_wrap=True)


def show_reason(result: ReasonResult, folder: Path) -> None:
    """Print the figures of a run of `skillweave reason`, what went wrong in it, and where its page is."""
    summary = result.summary
    rows = [[name or "(no family)", *_of_problems(figures)] for name, figures in summary.families.items()]
    if len(rows) != 1:
        rows.append(["all", *_of_problems({"problems": summary.problems, "raw": summary.raw, "task": summary.task})])
    out.print(Table(["family", "problems", "test pairs right", "problems right"], rows).rich())
    out.print(
        f"{share_of(summary.solved, summary.problems, 'problems')} solved on their examples; {summary.calls:,} calls "
        f"({result.paid:,} answered by a model now), {summary.tokens:,} tokens.",
        soft_wrap=True,
    )
    for role, counts in summary.agents.items():
        faults = {"could not be read": counts.failed, "were read after a repair": counts.repaired}
        faults |= {"were cut off (raise --max-tokens)": counts.cut_off, "defined another name than f": counts.renamed}
        for what, count in faults.items():
            if count:
                out.print(f"  {role}: {share_of(count, counts.calls, 'answers')} {what}", soft_wrap=True)
    for target, counters in result.engines.items():
        if counters.steps:
            out.print(
                f"  engine {target}: {counters.steps:,} steps, {counters.step_tokens / counters.steps:.1f} tokens each",
                soft_wrap=True,
                markup=False,
            )
    if summary.unfinished:
        out.print(
            f"{share_of(summary.unfinished, summary.problems, 'problems')} unfinished, because a model gave no "
            f"answer (the reason is above): run the same command again to go on; finished problems are kept.",
            soft_wrap=True,
        )
    out.print(f"The trees are in {folder / 'report.html'}.", soft_wrap=True, markup=False)


def _of_problems(figures: Mapping[str, float]) -> list[str]:
    return [f"{figures['problems']:.0f}", f"{figures['raw']:.1%}", f"{figures['task']:.1%}"]


def show_rated(rated: Sequence[Rated], split: str) -> None:
    """Print scores with intervals, as a line for one task or a table for several, and then notes on the answers."""
    if len(rated) == 1:
        score = rated[0].score
        out.print(f"{rated[0].task.name}, {split}: {_with_interval(score.figure, f'{score.n} prompts')}")
        for name, figure in _of_samples(rated[0]).items():
            out.print(f"{name}: {_with_interval(figure, f'{score.samples} samples a prompt')}")
    else:
        _show_table(rated, split)
    for one, title in zip(rated, _titles(rated), strict=True):
        name = f"{title}: " if len(rated) > 1 else ""
        if one.examples.count:
            out.print(f"{name}{one.examples.count} examples of the train split were put before each prompt")
        _show_calls(name, one.replies)
        show_cut_off(one.replies, name)


def show_cut_off(replies: Sequence[Reply], name: str = "") -> None:
    """Print how many answers ran into a limit, if any did."""
    cut = sum(reply.ended != "answer" for reply in replies)
    if cut:
        which = "The answer was" if len(replies) == 1 else f"{cut / len(replies):.0%} of the answers were"
        console.print(Text(f"{name}{which} cut off before the model had ended: ", style="yellow"), end="")
        console.print("allow more with --max-new-tokens, unless the base's context is full", soft_wrap=True)


def _show_table(rated: Sequence[Rated], split: str) -> None:
    table = RichTable(box=SIMPLE_HEAD, title=f"Mean scores on {split} prompts, in percent", title_justify="left")
    names = list(_of_samples(rated[0]))
    for column in ("task", "prompts", "mean", "95% interval", *names):
        left = column == "task"
        table.add_column(column, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    for one, title in zip(rated, _titles(rated), strict=True):
        score = one.score
        others = _of_samples(one).values()
        cells = [title, str(score.n), f"{100 * score.mean:.1f}", _interval(score.figure)]
        table.add_row(*map(Text, cells), *(Text(f"{100 * figure.value:.1f}") for figure in others))
    out.print(table)


def _titles(rated: Sequence[Rated]) -> list[str]:
    """The name of each task; for tasks with the same name, what the user called them."""
    names = [one.task.name for one in rated]
    return [one.given if names.count(name) > 1 else name for one, name in zip(rated, names, strict=True)]


def _of_samples(rated: Rated) -> dict[str, Figure]:
    """pass@k and the majority's score, if each prompt has several samples."""
    figures = {f"pass@{k}": figure for k, figure in rated.score.pass_at.items()}
    return figures | ({"majority": rated.score.majority} if rated.score.majority is not None else {})


def _with_interval(figure: Figure, of: str) -> str:
    return f"{100 * figure.value:.1f}% (95% interval {_interval(figure)}, {of})"


def _interval(figure: Figure) -> str:
    return f"{100 * figure.low:.1f} to {100 * figure.high:.1f}"


def _show_calls(name: str, replies: Sequence[Reply]) -> None:
    """Print how tools were used; nothing for replies without tools."""
    held = [reply.conversation for reply in replies if reply.conversation is not None]
    if not held:
        return
    calls, failed = fmean(one.calls for one in held), fmean(one.failed_calls for one in held)
    answered = fmean(reply.answer is not None for reply in replies)
    out.print(f"{name}{calls:.2f} calls a prompt, {failed:.2f} of them failed; {answered:.0%} ended with an answer")
    others = sum(one.other_forms for one in held)
    if others:
        out.print(f"{name}{others} of the calls were in another form than the model was told to use")


_ENDED_BY = {
    "calls": "it would have made more calls than max_tool_calls allows: allow more in the file of --tools",
    "length": "it reached its longest length: give more --max-new-tokens, unless the base's context is full",
}


def show_conversation(reply: Reply) -> None:
    """Print the calls and their results as notes on the console, then the answer alone on standard output."""
    held = reply.conversation
    assert held is not None
    if reply.confidence is not None:
        console.print(f"route: {reply.pack or BASE} ({100 * reply.confidence:.0f}%)", style="dim")
    for line in (held.before if reply.answer is not None else held.before + held.last).splitlines():
        console.print(Text(printable(line), style="dim"), soft_wrap=True)
    if reply.answer is None:
        console.print(f"No answer: {_ENDED_BY[reply.ended]}.", soft_wrap=True)
    else:
        out.file.write(f"{harmless(reply.answer) if out.is_terminal else reply.answer}\n")


def show_side_by_side(rows: Sequence[Any]) -> None:
    """Print a mixed batch: each prompt, its route, the answer of the base and the answer of the weave."""
    table = RichTable(title="One mixed batch, one process", title_justify="left", show_lines=True)
    table.add_column("prompt", ratio=4, overflow="fold")
    table.add_column("route", ratio=1, overflow="fold")
    table.add_column("base says", ratio=3, overflow="fold")
    table.add_column("the weave says", ratio=3, overflow="fold")
    for row in rows:
        cells = [row.prompt, row.route, row.base, row.weave]
        table.add_row(*(_short(cell) for cell in cells))
    out.print()
    out.print(table)


def show_served(rows: Sequence[Any]) -> None:
    """Print what a server was asked at once, who answered, what, and whether that is right."""
    title = "One server, asked by the client of OpenAI, all at once"
    table = RichTable(title=title, title_justify="left", show_lines=True)
    table.add_column("model", ratio=2, overflow="fold")
    table.add_column("prompt", ratio=4, overflow="fold")
    table.add_column("answered by", ratio=2, overflow="fold")
    table.add_column("answer", ratio=4, overflow="fold")
    table.add_column("right")
    table.add_column("seconds", justify="right")
    for row in rows:
        sure = "" if row.confidence is None else f" ({row.confidence:.0%})"
        cells = [row.model, row.prompt, f"{row.pack}{sure}", row.answer]
        table.add_row(*(_short(cell) for cell in cells), "yes" if row.score == 1 else "no", f"{row.seconds:.1f}")
    out.print()
    out.print(table)


def _short(text: str, limit: int = 160) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"
