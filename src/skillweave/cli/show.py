"""What the commands print on standard output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from skillweave.cli.scoring import Rated
from skillweave.pack import Skillpack
from skillweave.progress import console, printable
from skillweave.report import human_bytes, short_probe_table, short_skill_table, short_unlearn_table
from skillweave.tasks.evaluate import Figure
from skillweave.weave import BASE, ToolReply, WeaveCard
from skillweave.weave.backbone import read_backbone

# Names, paths and answers are shown as they are: a "[x]" or ":x:" in them is no markup.
out = Console(highlight=False, markup=False, emoji=False)


def show_report(report: dict[str, Any], folder: Path) -> None:
    """The table of a build, what it costs in memory, and where the rest lies."""
    memory, router = report["memory"], report["router"]
    out.print()
    out.print(short_skill_table(report).rich(title="Mean scores on the test prompts, in percent"))
    out.print(
        f"In memory: base {human_bytes(memory['base_bytes'])}, weave {human_bytes(memory['weave_bytes'])} "
        f"({memory['weave_bytes'] / memory['base_bytes']:.2f}x), "
        f"{len(report['skills'])} separate models {human_bytes(memory['separate_bytes'])}."
    )
    out.print(
        f"Router: {100 * router['accuracy']:.1f}% of the test prompts to their own skill, "
        f"{100 * router['abstained']:.1f}% left to the base."
    )
    out.print(f"The weave is in {folder}; the report in {folder / 'report.html'}.", soft_wrap=True)
    out.print(f'Ask it something: skillweave generate {folder} "your prompt"', soft_wrap=True)


def show_unlearn_report(report: dict[str, Any], folder: Path) -> None:
    """What became of both sets, what the probes brought back, and where the rest lies."""
    out.print()
    out.print(short_unlearn_table(report).rich(title="What is forgotten, and what is kept"))
    out.print()
    out.print(short_probe_table(report).rich(title="What the probes bring back: extraction strength"))
    out.print(f"The report is in {folder / 'report.html'}.", soft_wrap=True)


def show_rated(rated: Sequence[Rated], split: str) -> None:
    """The scores with their intervals: a line for one task, a table for several; then what to know of them."""
    if len(rated) == 1:
        score = rated[0].score
        out.print(f"{rated[0].task.name}, {split}: {_with_interval(score.figure, f'{score.n} prompts')}")
        for name, figure in _of_samples(rated[0]).items():
            out.print(f"{name}: {_with_interval(figure, f'{score.samples} samples a prompt')}")
    else:
        _show_table(rated, split)
    for one in rated:
        name = f"{one.task.name}: " if len(rated) > 1 else ""
        if one.examples.count:
            out.print(f"{name}{one.examples.count} examples of the train split stood before each prompt")
        _show_calls(name, [reply for reply in one.replies if isinstance(reply, ToolReply)])
        if one.cut_off:
            console.print(
                f"[yellow]{name}{one.cut_off / len(one.replies):.0%} of the answers were cut off before the model had "
                "ended them:[/yellow] allow more with --max-new-tokens, unless the base's context is full",
                soft_wrap=True, highlight=False,
            )  # fmt: skip


def _show_table(rated: Sequence[Rated], split: str) -> None:
    table = RichTable(box=SIMPLE_HEAD, title=f"Mean scores on {split} prompts, in percent", title_justify="left")
    names = list(_of_samples(rated[0]))
    for column in ("task", "prompts", "mean", "95% interval", *names):
        left = column == "task"
        table.add_column(column, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    for one in rated:
        score = one.score
        others = _of_samples(one).values()
        cells = [one.task.name, str(score.n), f"{100 * score.mean:.1f}", _interval(score.figure)]
        table.add_row(*map(Text, cells), *(Text(f"{100 * figure.value:.1f}") for figure in others))
    out.print(table)


def _of_samples(rated: Rated) -> dict[str, Figure]:
    """What several samples a prompt give beside their mean."""
    found = {f"pass@{k}": figure for k, figure in rated.score.pass_at.items()}
    return found | ({"majority": rated.score.majority} if rated.score.majority is not None else {})


def _with_interval(figure: Figure, of: str) -> str:
    return f"{100 * figure.value:.1f}% (95% interval {_interval(figure)}, {of})"


def _interval(figure: Figure) -> str:
    return f"{100 * figure.low:.1f} to {100 * figure.high:.1f}"


def _show_calls(name: str, held: Sequence[ToolReply]) -> None:
    """How tools were used."""
    if not held:
        return
    calls, failed = fmean(reply.calls for reply in held), fmean(reply.failed_calls for reply in held)
    answered = fmean(reply.answer is not None for reply in held)
    out.print(f"{name}{calls:.2f} calls a prompt, {failed:.2f} of them failed; {answered:.0%} ended with an answer")
    others = sum(reply.other_forms for reply in held)
    if others:
        out.print(f"{name}{others} of the calls were read in another form than the model was told")


_ENDED_BY = {
    "calls": "it would have made more calls than max_tool_calls allows: allow more in the file of --tools",
    "length": "it grew to its longest: give more --max-new-tokens, unless that is the base's context",
}


def show_conversation(reply: ToolReply) -> None:
    """What was called and what came back, as a note; then the answer, alone on standard output."""
    if reply.confidence is not None:
        console.print(f"[dim]route: {reply.pack or BASE} ({100 * reply.confidence:.0f}%)[/dim]")
    for line in (reply.way if reply.answer is not None else reply.way + reply.last).splitlines():
        console.print(Text(printable(line), style="dim"), soft_wrap=True)
    if reply.answer is None:
        console.print(f"No answer: {_ENDED_BY[reply.ended]}.", soft_wrap=True)
    else:
        out.file.write(f"{reply.answer}\n")


def show_side_by_side(rows: Sequence[Any]) -> None:
    """One mixed batch: the prompt, the route taken, what the base says and what the weave says."""
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


def _short(text: str, limit: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def show_pack(pack: Skillpack, folder: Path, *, tensors: bool = False) -> None:
    """What is in a pack: identity, codec, bytes by part, scores; every tensor where asked."""
    card = pack.card
    size = card.bytes
    settings = ", ".join(f"{key} {value}" for key, value in card.codec.settings.items())
    facts = [
        ("pack", f"{card.name} ({folder})"),
        ("base", f"{card.base.ref} ({card.base.fingerprint[:23]}...)"),
        ("method", card.method),
        ("codec", f"{card.codec.name} ({settings})"),
        ("tensors", f"{len(card.entries)} changed, {len(card.left_out)} left out"),
        (
            "bytes",
            f"{size.total:,} on disk"
            + (f", 1/{size.bf16_delta / size.total:.1f} of the bf16 delta" if size.bf16_delta else ""),
        ),
        (
            "",
            f"matrices {size.matrices:,}, scales {size.scales:,}, "
            f"whole tensors {size.whole:,}, metadata {size.metadata:,}",
        ),
    ]
    facts += [
        (f"score, {arm}", f"{100 * score['mean']:.1f}% ({score['n']} prompts)") for arm, score in card.scores.items()
    ]
    _show_facts(facts)
    if tensors:
        table = RichTable(title="Tensors", title_justify="left")
        for column in ("tensor", "kind", "shape", "rank", "bits"):
            table.add_column(column, overflow="fold")
        for name, entry in card.entries.items():
            rank, bits = (str(getattr(entry, key, "")) for key in ("rank", "bits"))
            table.add_row(name, entry.kind, "x".join(map(str, entry.shape)), rank, bits)
        out.print(table)


def show_weave(card: WeaveCard, folder: Path) -> None:
    """What is in a weave: base, router, and each pack's bytes on disk, by part."""
    table = RichTable(box=SIMPLE_HEAD)
    table.add_column("pack", overflow="fold")
    for column in ("matrices", "scales", "whole", "metadata", "total", "of bf16"):
        table.add_column(column, justify="right")
    for name in card.packs:
        size = Skillpack.from_pretrained(folder / "packs" / name).card.bytes
        parts = (size.matrices, size.scales, size.whole, size.metadata, size.total)
        share = f"1/{size.bf16_delta / size.total:.1f}" if size.bf16_delta else "-"
        table.add_row(Text(name), *map(human_bytes, parts), share)
    _show_facts(
        [
            ("weave", str(folder)),
            ("base", f"{card.base.ref} ({card.base.fingerprint[:23]}...)"),
            *_backbone_facts(card, folder),
            ("router", "yes" if card.router else "no"),
            ("dtype", card.dtype or "as the base's files"),
            ("budget", f"{human_bytes(card.budget)} in memory, base included" if card.budget else "none"),
        ]
    )
    out.print(table)


def _backbone_facts(card: WeaveCard, folder: Path) -> list[tuple[str, str]]:
    """What is laid on the base before any pack is: how it was made, what it changes; nothing where there is none."""
    if card.backbone is None:
        return []
    delta = read_backbone(folder)
    method = delta.provenance.get("method", "a delta")
    return [
        ("backbone", f"the base after {method} ({card.backbone.fingerprint[:23]}...)"),
        ("", f"{len(delta.names())} tensors changed, {human_bytes(delta.nbytes)} on disk; every pack stands on it"),
    ]


def _show_facts(facts: Sequence[tuple[str, str]]) -> None:
    table = RichTable.grid(padding=(0, 2))
    for name, value in facts:
        table.add_row(Text(name, style="bold"), value)
    out.print(table)
