"""Completions through the official client."""

from __future__ import annotations

import pytest


def test_a_text_is_continued_as_it_is(served) -> None:
    answer = served.client.completions.create(model="sort", prompt="Once")
    assert answer.choices[0].text == "Hello!"
    assert answer.choices[0].finish_reason == "stop"
    (asked,) = served.engine.requests
    assert (asked.text, asked.pack, asked.sampling.max_new_tokens) == ("Once", "sort", 16)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 7)
    assert answer.skillweave["pack"] == "sort"


@pytest.mark.parametrize("prompt", [["ab", "cde"], [[70, 71], [72, 73, 74]]])
def test_several_prompts_have_several_answers_each(served, prompt) -> None:
    served.engine.script = lambda asked: f"{asked.text}/{asked.sampling.seed}"
    answer = served.client.completions.create(model="base", prompt=prompt, n=2, seed=3)
    first, second = (asked.text for asked in served.engine.requests[::2])
    assert [choice.text for choice in answer.choices] == [f"{first}/3", f"{first}/4", f"{second}/3", f"{second}/4"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 5


def test_token_ids_are_used_as_they_are(served) -> None:
    served.client.completions.create(model="base", prompt=[5, 6, 7])
    assert served.engine.requests[0].prompt == [5, 6, 7]


def test_a_stream_joins_to_the_answer(served) -> None:
    chunks = list(
        served.client.completions.create(
            model="base", prompt=["a", "b"], stream=True, stream_options={"include_usage": True}, logprobs=1
        )
    )
    for index in (0, 1):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == index]
        assert "".join(choice.text for choice in mine) == "Hello!"
        assert [choice.finish_reason for choice in mine] == [None] * 6 + ["stop"]
        assert [offset for choice in mine[:-1] for offset in choice.logprobs.text_offset] == [0, 1, 2, 3, 4, 5]
    assert chunks[0].skillweave == chunks[-1].skillweave
    assert chunks[-1].usage.total_tokens == 16


def test_log_probabilities_have_the_older_shape(served) -> None:
    logprobs = served.client.completions.create(model="base", prompt="a", logprobs=2).choices[0].logprobs
    assert logprobs.tokens == list("Hello!")
    assert logprobs.token_logprobs == [-0.5] * 6
    assert logprobs.top_logprobs[0] == {"H": -0.5, "I": -1.5}
    assert logprobs.text_offset == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt.1"),
        ({"prompt": [["a"]]}, "prompt.0"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"prompt": [True]}, "prompt.0"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": [*range(70), -1, 5]}, "prompt.70"),
        ({"prompt": ["a", "b"], "model": "auto"}, "prompt"),
        ({"logprobs": 21}, "top_logprobs"),
    ],
)
def test_what_cannot_be_done_is_refused(served, more: dict, param: str) -> None:
    answer = served.post("completions", **{"model": "base", "prompt": "a", **more})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
