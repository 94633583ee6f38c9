"""Chat completions through the official client: whole, streamed, several, with log-probabilities and forms."""

from __future__ import annotations

import json
import math

import pytest

from skillweave.weave import Route

ASK = [{"role": "user", "content": "Hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"town": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["town", "days"],
    "additionalProperties": False,
}


def test_an_answer_has_its_text_its_usage_and_who_answered(served) -> None:
    raw = served.client.chat.completions.with_raw_response.create(model="sort", messages=ASK)
    answer = raw.parse()
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello!", "stop")
    (asked,) = served.engine.requests
    assert asked.text == "<user>Hi<end><assistant>"
    assert (asked.pack, asked.sampling.temperature, asked.sampling.max_new_tokens) == ("sort", 1.0, 400)
    assert answer.usage.prompt_tokens == len(asked.prompt)
    assert answer.usage.completion_tokens == 7  # with the end token
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7
    assert (answer.model, answer.object, answer.system_fingerprint) == ("sort", "chat.completion", "fp_test")
    assert answer.skillweave == {"pack": "sort", "route": "named", "confidence": None}
    assert raw.headers["x-skillweave-pack"] == "sort"
    assert "x-skillweave-confidence" not in raw.headers
    assert served.service.held == []
    noted = served.service.observer
    assert (noted.started_, noted.firsts, noted.tokens, len(noted.failed_)) == (1, 1, 5, 0)
    ((figures, reason),) = noted.finished_
    assert (figures.completion_tokens, figures.resolved.pack, reason) == (7, "sort", "stop")


def test_the_router_chooses_for_auto(served) -> None:
    served.engine.route_to = Route("json", 0.91)
    raw = served.client.chat.completions.with_raw_response.create(model="auto", messages=ASK)
    assert raw.parse().skillweave == {"pack": "json", "route": "router", "confidence": 0.91}
    assert (raw.headers["x-skillweave-pack"], raw.headers["x-skillweave-confidence"]) == ("json", "0.9100")
    served.engine.route_to = Route(None, 0.5)
    assert served.client.chat.completions.create(model="auto", messages=ASK).skillweave["pack"] == "base"
    assert [asked.pack for asked in served.engine.requests] == ["json", None]


def test_a_stream_joins_to_the_answer(served) -> None:
    stream = served.client.chat.completions.create(
        model="base", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello!"
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) == 6
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.completion_tokens, chunks[-2].usage) == (7, None)
    assert chunks[0].skillweave == chunks[-1].skillweave == {"pack": "base", "route": "named", "confidence": None}
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_usage_ends_with_done(served) -> None:
    text = served.post("chat/completions", model="base", messages=ASK, stream=True).text
    assert text.endswith("data: [DONE]\n\n")
    assert '"usage"' not in text


def test_several_answers_have_following_seeds(served) -> None:
    served.engine.script = lambda asked: f"seed {asked.sampling.seed}"
    answer = served.client.chat.completions.create(model="base", messages=ASK, n=3, seed=5)
    assert [choice.message.content for choice in answer.choices] == ["seed 5", "seed 6", "seed 7"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == len(served.engine.requests[0].prompt)
    streamed = ["", "", ""]
    for chunk in served.client.chat.completions.create(model="base", messages=ASK, n=3, seed=5, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == ["seed 5", "seed 6", "seed 7"]


def test_seeds_are_random_unless_they_are_given(served) -> None:
    served.engine.script = lambda asked: None
    texts = [
        served.client.chat.completions.create(model="base", messages=ASK, max_tokens=20, **more)
        .choices[0]
        .message.content
        for more in ({}, {}, {"seed": -3}, {"seed": -3})
    ]
    assert texts[0] != texts[1]
    assert texts[2] == texts[3]


def test_the_sampling_and_the_ends_reach_the_engine(served) -> None:
    served.engine.script = lambda asked: "one, two; three"
    answer = served.client.chat.completions.create(
        model="base", messages=ASK, temperature=0, top_p=0.5, max_completion_tokens=12, stop=[";", "##"]
    )
    assert answer.choices[0].message.content == "one, two"
    assert answer.choices[0].finish_reason == "stop"
    (asked,) = served.engine.requests
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.max_new_tokens) == (0.0, 0.5, 12)
    assert asked.stop == (";", "##")
    cut = served.client.chat.completions.create(model="base", messages=ASK, max_tokens=3, stop="zzz")
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("one", "length")


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_real_texts_and_bytes(served, stream: bool) -> None:
    asked = {"model": "base", "messages": ASK, "logprobs": True, "top_logprobs": 2}
    if stream:
        chunks = list(served.client.chat.completions.create(stream=True, **asked))
        shown = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    else:
        shown = served.client.chat.completions.create(**asked).choices[0].logprobs.content
    assert [one.token for one in shown] == list("Hello!")
    assert bytes(byte for one in shown for byte in one.bytes) == b"Hello!"
    assert [one.logprob for one in shown] == [-0.5] * 6
    assert [(top.token, top.logprob) for top in shown[0].top_logprobs] == [("H", -0.5), ("I", -1.5)]


def test_log_probabilities_without_alternatives(served) -> None:
    answer = served.client.chat.completions.create(model="base", messages=ASK, logprobs=True)
    assert all(one.top_logprobs == [] for one in answer.choices[0].logprobs.content)
    assert served.client.chat.completions.create(model="base", messages=ASK).choices[0].logprobs is None


@pytest.mark.parametrize("seed", range(4))
def test_random_answers_follow_a_json_schema(served, seed: int) -> None:
    served.engine.script = lambda asked: None
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
    answer = served.client.chat.completions.create(model="base", messages=ASK, response_format=form, seed=seed)
    value = json.loads(answer.choices[0].message.content)
    assert value.keys() == {"town", "days"}
    assert 1 <= value["days"] <= 9


def test_random_answers_are_json_objects(served) -> None:
    served.engine.script = lambda asked: None
    ended = 0
    for seed in range(10):
        answer = served.client.chat.completions.create(
            model="base", messages=ASK, response_format={"type": "json_object"}, seed=seed
        )
        if answer.choices[0].finish_reason == "stop":
            ended += 1
            assert isinstance(json.loads(answer.choices[0].message.content), dict)
    assert ended > 0


def test_contents_may_be_lists_of_text_parts_and_roles_may_be_developer(served) -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]
    messages = [{"role": "developer", "content": "Be brief"}, {"role": "user", "content": parts}]
    served.client.chat.completions.create(model="base", messages=messages)
    assert served.engine.requests[0].text == "<system>Be brief<end><user>Hi\nthere<end><assistant>"


def test_what_clients_send_along_changes_nothing(served) -> None:
    answer = served.client.chat.completions.create(
        model="base", messages=ASK, user="me", metadata={"a": "b"}, service_tier="auto", store=False,
        frequency_penalty=0, presence_penalty=0.0, logit_bias={}, modalities=["text"], parallel_tool_calls=True,
    )  # fmt: skip
    assert answer.choices[0].message.content == "Hello!"
    assert math.isclose(served.engine.requests[0].sampling.top_p, 1.0)


def test_an_answer_can_be_sent_back_as_it_came(served) -> None:
    answer = served.client.chat.completions.create(model="base", messages=ASK)
    again = [*ASK, answer.choices[0].message.model_dump(), *ASK]
    served.client.chat.completions.create(model="base", messages=again)
    assert served.engine.requests[1].text == "<user>Hi<end><assistant>Hello!<end><user>Hi<end><assistant>"


def test_the_models_are_listed(served) -> None:
    models = served.client.models.list().data
    assert [model.id for model in models] == ["base", "sort", "json", "auto"]
    assert models[1].parent == "base"
    assert models[1].kind == "pack"
    assert served.client.models.retrieve("sort").id == "sort"
