"""A conversation with a server: turns, routes, the system message, and what happens when the reader stops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from helpers.live_server import live
from helpers.small_server import SmallEngine, small_service
from skillweave.errors import UserError
from skillweave.serve.app import create_app
from skillweave.serve.chat import ChatSession, ShownRoute, listed_models
from skillweave.serve.settings import ServeConfig

ENGINE = SmallEngine("abc", pause=0.01)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    service = small_service(ENGINE)
    with live(create_app(service, ServeConfig(), None, write_log=lambda _: None)) as address:
        yield f"{address}/v1"


@pytest.fixture
def session(url: str) -> ChatSession:
    client = OpenAI(base_url=url, api_key="none", max_retries=0)
    return ChatSession(client, listed_models(client), "auto", "Be brief.")


def test_answers_become_turns_and_the_route_is_told(session: ChatSession) -> None:
    assert "".join(session.ask("sort 2 1")) == "abc"
    assert session.route == ShownRoute("sort", 0.97)
    session.choose("base")
    list(session.ask("hello"))
    assert session.route == ShownRoute("base", None)
    assert [turn["content"] for turn in session.turns] == ["sort 2 1", "abc", "hello", "abc"]


def test_what_was_read_of_a_stopped_answer_is_kept_and_the_server_gives_it_up(session: ChatSession) -> None:
    answer = session.ask("sort")
    assert next(answer) == "a"
    answer.close()  # type: ignore[attr-defined]
    assert session.turns[-1] == {"role": "assistant", "content": "a"}


def test_the_likeliest_token_is_taken_unless_a_temperature_is_given(url: str) -> None:
    for temperature in (0.0, 0.7):
        client = OpenAI(base_url=url, api_key="none", max_retries=0)
        list(ChatSession(client, [], "sort", temperature=temperature).ask("hello"))
        assert ENGINE.requests[-1].sampling.temperature == temperature


def test_unknown_names_are_told(session: ChatSession) -> None:
    assert session.models == ["base", "auto", "sort", "reverse"]
    with pytest.raises(UserError, match="did you mean 'sort'"):
        session.choose("srot")


def test_a_message_that_is_refused_is_no_turn(session: ChatSession) -> None:
    session.model = "nobody"
    with pytest.raises(UserError, match="the model 'nobody' does not exist"):
        list(session.ask("hello"))
    assert session.turns == []


def test_a_missing_server_is_told() -> None:
    with pytest.raises(UserError, match="no server answers"):
        listed_models(OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0))
