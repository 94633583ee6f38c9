"""The pages themselves: chat, two packs side by side, and the packs in memory with live figures."""

from __future__ import annotations

import contextlib
import importlib.resources
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import gradio as gr

from skillweave.base import Sampling
from skillweave.serve.admission import Admission
from skillweave.serve.engine_service import EngineService
from skillweave.serve.errors import api_error
from skillweave.serve.playground import drawing
from skillweave.serve.playground.answering import AnswerState, answer
from skillweave.serve.playground.figures import LiveFigures
from skillweave.serve.playground.markdown import shown_markdown
from skillweave.serve.playground.together import together
from skillweave.serve.service import ModelInfo, Service
from skillweave.serve.settings import ServeConfig

THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.teal,
    neutral_hue=gr.themes.colors.gray,
    radius_size=gr.themes.sizes.radius_md,
    spacing_size=gr.themes.sizes.spacing_sm,
    # Names of fonts that the system has. Gradio would load its own ones from the internet.
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    body_background_fill="#f5f7f6",
    body_background_fill_dark="#111615",
    background_fill_primary="#ffffff",
    background_fill_primary_dark="#1a2120",
    block_background_fill="#ffffff",
    block_background_fill_dark="#1a2120",
    block_label_text_size="13px",
    border_color_primary="#dfe4e3",
    border_color_primary_dark="#323b3a",
    input_background_fill="#f5f7f6",
    input_background_fill_dark="#111615",
    slider_color="*primary_700",
    slider_color_dark="*primary_400",
    link_text_color="*primary_700",
    link_text_color_dark="*primary_400",
)
_REFRESH = 2.0
_SUGGESTED_TOKENS = 256
_ABOUT = {"auto": "the router chooses", "base": "no pack"}
_EMPTY_CHAT = "Ask something. With **auto**, the router shows which pack it chose."

Messages = list[dict[str, str]]
Ask = Callable[[str, Messages, Sampling], AsyncGenerator[AnswerState, None]]
"""Asks a model: :func:`~skillweave.serve.playground.answering.answer` of this server."""


def style() -> str:
    """Return the style sheet of the pages."""
    return importlib.resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")


def build_page(service: EngineService, admission: Admission, settings: ServeConfig) -> gr.Blocks:
    """Return the pages, as :func:`~skillweave.serve.playground.mount.mount_playground` mounts them."""
    ask: Ask = partial(answer, service, admission)
    figures = LiveFigures(service.engine.counters, service.metrics.registry)
    answers: dict[str, Any] = {
        "concurrency_limit": settings.max_streams, "concurrency_id": "answers", "show_progress": "hidden",
        "api_visibility": "private",
    }  # fmt: skip
    quick: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}

    def memory() -> tuple[str, str]:
        return drawing.live_figures(figures.read()), drawing.packs(service.memory.status(), settings.pack_memory)

    with gr.Blocks(title="SkillWeave", analytics_enabled=False, fill_width=True) as page:
        gr.HTML('<h1 class="sw-title">SkillWeave</h1>', js_on_load=None, elem_classes="sw-top")
        with gr.Tabs():
            with gr.Tab("Chat") as chat_tab:
                picker = _chat(service, ask, answers, quick)
            with gr.Tab("Side by side") as pair_tab:
                left, right = _side_by_side(service, ask, answers, quick)
            with gr.Tab("Packs") as packs_tab:
                tiles = gr.HTML(js_on_load=None)
                table = gr.HTML(js_on_load=None)
        timer = gr.Timer(_REFRESH, active=False)
        timer.tick(memory, None, [tiles, table], **quick)
        packs_tab.select(memory, None, [tiles, table], **quick)
        packs_tab.select(lambda: gr.Timer(active=True), None, timer, **quick)
        for other in (chat_tab, pair_tab):
            other.select(lambda: gr.Timer(active=False), None, timer, **quick)
        # Packs may have been added since the server started.
        page.load(lambda: [gr.Dropdown(choices=choices(service.models()))] * 3, None, [picker, left, right], **quick)
    page.queue(max_size=4 * settings.max_streams, default_concurrency_limit=None, api_open=False)
    return page


def choices(models: Sequence[ModelInfo]) -> list[tuple[str, str]]:
    """Return what the pickers offer: (what is shown, the model's id), the router first and the plain base last."""
    order = {"auto": 0, "pack": 1, "base": 2}
    return [
        (f"{one.id} – {_ABOUT[one.kind]}" if one.kind in _ABOUT else one.id, one.id)
        for one in sorted(models, key=lambda one: order[one.kind])
    ]


def _picker(service: Service, label: str, at: int = 0) -> gr.Dropdown:
    known = choices(service.models())
    return gr.Dropdown(known, value=known[min(at, len(known) - 1)][1], label=label, elem_classes="sw-picker")


def _sampling(service: Service) -> tuple[gr.Slider, gr.Slider]:
    most = service.limits.max_tokens
    return (
        gr.Slider(0, 2, value=0, step=0.1, label="Temperature", buttons=[]),
        gr.Slider(1, most, value=min(_SUGGESTED_TOKENS, most), step=1, label="Longest answer (tokens)", buttons=[]),
    )


# -- chat --------------------------------------------------------------------------------------------------------------


def _chat(service: Service, ask: Ask, answers: dict[str, Any], quick: dict[str, Any]) -> gr.Dropdown:
    async def reply(
        text: str, said: Messages, model: str, temperature: float, longest: int
    ) -> AsyncIterator[dict[Any, Any]]:
        if not text.strip():
            yield {line: ""}
            return
        asked = [*said, {"role": "user", "content": text}]
        yield {box: _busy(""), chatbot: _shown(asked), route: "", line: '<p class="sw-line">…</p>'}
        try:
            states = ask(model, asked, _drawn(temperature, longest))
            async with contextlib.aclosing(states):
                async for state in states:
                    now = [*asked, {"role": "assistant", "content": state.text}]
                    yield {
                        chatbot: _shown(now), conversation: now, route: drawing.route(state),
                        line: drawing.answer_figures(state),
                    }  # fmt: skip
        except Exception as error:
            told = drawing.fault(api_error(error).message)
            yield {box: _idle(text), chatbot: _shown(said), conversation: said, line: told}
            return
        yield {box: _idle()}

    conversation = gr.State([])
    with gr.Row(elem_classes="sw-page"):
        with gr.Column(scale=4, min_width=420):
            chatbot = gr.Chatbot(
                show_label=False, container=False, elem_classes="sw-chat", height="calc(100vh - 166px)",
                layout="bubble", placeholder=_EMPTY_CHAT, buttons=["copy"], feedback_options=None,
                allow_file_downloads=False, latex_delimiters=[],
            )  # fmt: skip
            line = gr.HTML(js_on_load=None, elem_classes="sw-status")
            box = gr.Textbox(
                show_label=False, placeholder="Ask something", submit_btn=True, autofocus=True, max_lines=6,
                elem_classes="sw-ask", container=False,
            )  # fmt: skip
        with gr.Column(scale=1, min_width=280, elem_classes="sw-side"):
            picker = _picker(service, "Pack")
            temperature, longest = _sampling(service)
            route = gr.HTML(js_on_load=None)
            clear = gr.Button("New conversation", variant="secondary", size="md")
    asking = box.submit(
        reply, [box, conversation, picker, temperature, longest], [box, chatbot, conversation, route, line], **answers
    )
    box.stop(_idle, None, box, cancels=[asking], **quick)
    clear.click(
        lambda: (_idle(), [], [], "", ""), None, [box, chatbot, conversation, route, line], cancels=[asking], **quick
    )
    return picker


def _shown(messages: Messages) -> Messages:
    return [{**one, "content": shown_markdown(one["content"]) or "…"} for one in messages]


def _drawn(temperature: float, longest: int) -> Sampling:
    """How to decode, with new draws for every answer."""
    return Sampling(max_new_tokens=int(longest), temperature=float(temperature), seed=secrets.randbelow(2**31))


def _busy(text: str | None = None) -> dict[str, Any]:
    more: dict[str, Any] = {} if text is None else {"value": text}
    return gr.update(submit_btn=False, stop_btn=True, **more)


def _idle(text: str | None = None) -> dict[str, Any]:
    more: dict[str, Any] = {} if text is None else {"value": text}
    return gr.update(submit_btn=True, stop_btn=False, **more)


# -- two packs ---------------------------------------------------------------------------------------------------------

Panel = tuple[str, str, str]
"""What is shown for one of two packs: the answer, the figures below it, and the route."""


def _side_by_side(
    service: Service, ask: Ask, answers: dict[str, Any], quick: dict[str, Any]
) -> tuple[gr.Dropdown, gr.Dropdown]:
    async def reply(text: str, left: str, right: str, temperature: float, longest: int) -> AsyncIterator[list[Any]]:
        if not text.strip():
            yield [gr.skip()] * 7
            return
        sampling = _drawn(temperature, longest)
        both = together([_panel(ask, model, text, sampling) for model in (left, right)])
        async with contextlib.aclosing(both):
            async for first, second in both:
                yield [_busy(), *(first or _WAITING), *(second or _WAITING)]
        yield [_idle(), *[gr.skip()] * 6]

    box = gr.Textbox(
        show_label=False, placeholder="One question, two answers", submit_btn=True, max_lines=4, elem_classes="sw-ask",
        container=False,
    )  # fmt: skip
    pickers: list[gr.Dropdown] = []
    panels: list[Any] = []
    with gr.Row(elem_classes="sw-pair", equal_height=True):
        for at, label in ((1, "Left"), (2, "Right")):
            with gr.Column(min_width=320):
                pickers.append(_picker(service, label, at))
                shown = gr.Markdown(elem_classes="sw-answer", latex_delimiters=[], container=True, padding=True)
                line = gr.HTML(js_on_load=None, elem_classes="sw-status")
                panels += [shown, line, gr.HTML(js_on_load=None)]
    with gr.Row():
        temperature, longest = _sampling(service)
    asking = box.submit(reply, [box, *pickers, temperature, longest], [box, *panels], **answers)
    box.stop(_idle, None, box, cancels=[asking], **quick)
    return pickers[0], pickers[1]


_WAITING: Panel = ("", '<p class="sw-line">…</p>', "")


async def _panel(ask: Ask, model: str, text: str, sampling: Sampling) -> AsyncIterator[Panel]:
    shown, route = "", ""
    try:
        states = ask(model, [{"role": "user", "content": text}], sampling)
        async with contextlib.aclosing(states):
            async for state in states:
                shown, route = shown_markdown(state.text), drawing.route(state)
                yield shown, drawing.answer_figures(state), route
    except Exception as error:
        yield shown, drawing.fault(api_error(error).message), route
