"""The parts of the pages that are plain HTML: the route, an answer's figures, the packs in memory, live figures.

Every text from outside is escaped here, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from skillweave.serve.playground.answering import AnswerState
from skillweave.serve.playground.figures import Figures
from skillweave.serve.residency import PackStatus
from skillweave.units import human_bytes

_ROUTES_SHOWN = 6


def route(state: AnswerState) -> str:
    """Return whom the router chose, with a bar for each of its likeliest choices; nothing if a person chose."""
    name = escape(state.resolved.name)
    if state.resolved.route != "router":
        return ""
    scores = list(state.scores.items())
    shown, rest = scores[:_ROUTES_SHOWN], scores[_ROUTES_SHOWN:]
    bars = [_score(escape(one), share, chosen=one == state.resolved.name) for one, share in shown]
    if rest:
        bars.append(_score(f"{len(rest)} others", sum(share for _, share in rest), chosen=False))
    unsure = state.resolved.pack is None and scores and scores[0][0] != state.resolved.name
    told = "The router is not sure enough of a pack: <b>{}</b> answers" if unsure else "The router chose <b>{}</b>"
    return f'<div class="sw-route"><p class="sw-who">{told.format(name)}</p>{"".join(bars)}</div>'


def _score(name: str, share: float, *, chosen: bool) -> str:
    kind = "sw-score sw-chosen" if chosen else "sw-score"
    return (
        f'<div class="{kind}"><span class="sw-name" title="{name}">{name}</span><span class="sw-percent">{share:.0%}'
        f'</span><span class="sw-track"><i style="width:{100 * share:.1f}%"></i></span></div>'
    )


def answer_figures(state: AnswerState) -> str:
    """Return who answers and how it goes, in one line."""
    parts = [f"<b>{escape(state.resolved.name)}</b>", f"{state.tokens} tokens"]
    if state.first_token is not None:
        parts.append(f"first after {state.first_token:.2f} s")
    if state.rate is not None:
        parts.append(f"{_speed(state.rate)} tokens/s")
    if state.ended == "cut off":
        parts.append("cut off: the limit is reached")
    return f'<p class="sw-line">{" · ".join(parts)}</p>'


def _speed(rate: float) -> str:
    """Tokens per second; a part of a token tells something only where they are few."""
    return f"{rate:.1f}" if rate < 100 else f"{rate:,.0f}"


def fault(message: str) -> str:
    """Return an error for people."""
    return f'<p class="sw-line sw-fault">{escape(message)}</p>'


def live_figures(figures: Figures | None) -> str:
    """Return the figures of the server as a row of tiles."""
    if figures is None:
        return '<p class="sw-line">The model is still being loaded.</p>'
    rate, first = figures.tokens_per_second, figures.first_token
    tiles = [
        ("Running", str(figures.running), "requests"),
        ("Waiting", str(figures.waiting), "requests"),
        ("Speed", "–" if rate is None else _speed(rate), "tokens/s"),
        ("First token", "–" if first is None else f"{1000 * first:.0f}", "ms, median"),
    ]
    return f'<div class="sw-tiles">{"".join(_tile(*one) for one in tiles)}</div>'


def _tile(name: str, value: str, unit: str) -> str:
    return f'<div class="sw-tile"><span>{name}</span><b>{value}</b> <small>{unit}</small></div>'


def packs(lines: Sequence[PackStatus], budget: int | None) -> str:
    """Return a row for each pack: a bar of its bytes in memory, its place, and its counts; above them, all together.

    ``budget``: the most bytes that packs may take in memory; None: there is no limit
    """
    if not lines:
        return '<p class="sw-line">This server has no packs: the plain base answers.</p>'
    used = sum(_held(one) for one in lines)
    largest = max(1, *(one.bytes or 0 for one in lines))
    order = sorted(lines, key=lambda one: (-_held(one), -(one.bytes or 0), one.name))
    head = "".join(
        f'<th scope="col"{extra}>{name}</th>'
        for name, extra in (
            ("Pack", ""), ("Bytes", ' colspan="2"'), ("Place", ""), ("In use", _RIGHT), ("Hits", _RIGHT),
            ("Loads", _RIGHT), ("Last load", _RIGHT), ("Evictions", _RIGHT),
        )
    )  # fmt: skip
    rows = "".join(_row(one, largest) for one in order)
    return (
        f'{_memory(order, used, budget)}<div class="sw-scroll"><table class="sw-packs"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


_RIGHT = ' class="sw-number"'


def _memory(order: Iterable[PackStatus], used: int, budget: int | None) -> str:
    """One bar with the bytes of all packs, up to the budget if there is one."""
    whole = max(1, used, budget or 0)
    parts = "".join(
        f'<i style="width:{100 * _held(one) / whole:.2f}%" title="{escape(one.name)}: {human_bytes(_held(one))}"></i>'
        for one in order
        if _held(one)
    )
    line = "" if budget is None else f'<u style="left:{100 * budget / whole:.2f}%"></u>'
    told = f"<b>{human_bytes(used)}</b> of packs in memory"
    told += ", without a limit" if budget is None else f" · the limit is {human_bytes(budget)}"
    kind = "sw-whole sw-full" if budget is None else "sw-whole"
    return f'<div class="sw-memory"><p>{told}</p><div class="{kind}">{parts}{line}</div></div>'


def _held(one: PackStatus) -> int:
    """The bytes that a pack takes in memory now."""
    return (one.bytes or 0) if one.level == "memory" else 0


def _row(one: PackStatus, largest: int) -> str:
    name = escape(one.name)
    why = "" if one.error is None else f' title="{escape(one.error)}"'
    pinned = ' <span class="sw-tag">pinned</span>' if one.pinned else ""
    busy = ' class="sw-number sw-busy"' if one.in_use else _RIGHT
    took = "–" if one.load_seconds is None else f"{one.load_seconds:.2f} s"
    size = "–" if one.bytes is None else human_bytes(one.bytes)
    share = 100 * (one.bytes or 0) / largest
    return (
        f'<tr class="sw-on-{one.level}"><th scope="row" title="{name}">{name}</th>'
        f'<td class="sw-bar"><span class="sw-track"><i style="width:{share:.1f}%"></i></span>'
        f'</td><td class="sw-number">{size}</td><td><span class="sw-tag sw-level"{why}>{one.level}</span>{pinned}</td>'
        f"<td{busy}>{one.in_use}</td><td{_RIGHT}>{one.hits}</td><td{_RIGHT}>{one.loads}</td>"
        f"<td{_RIGHT}>{took}</td><td{_RIGHT}>{one.evictions}</td></tr>"
    )
