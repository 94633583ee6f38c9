"""Prompts through the chat template, and without one."""

from __future__ import annotations

import pytest
from tokenizers import Regex, pre_tokenizers

from helpers.micro import micro_tokenizer
from skillweave.base import answer_ids, prompt_ids, prompt_text
from skillweave.errors import UserError


def test_a_text_is_a_message_of_the_user() -> None:
    tokenizer = micro_tokenizer()
    assert prompt_text(tokenizer, "hi") == "<user>hi<end><assistant>"
    assert prompt_text(tokenizer, "hi") == prompt_text(tokenizer, [{"role": "user", "content": "hi"}])
    assert tokenizer.decode(prompt_ids(tokenizer, "hi")).replace(" ", "") == "<user>hi<end><assistant>"


def test_without_a_template_the_contents_stand_alone() -> None:
    tokenizer = micro_tokenizer(chat_template=None)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert prompt_text(tokenizer, messages) == "Be brief.\nhi"


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}"])
def test_half_a_character_in_a_prompt_is_a_user_error(template: str | None) -> None:
    """A command-line argument that is not UTF-8 contains such halves."""
    with pytest.raises(UserError, match=r"'\\udcff', half a character .* as character 3: write"):
        prompt_ids(micro_tokenizer(chat_template=template), "hi\udcff")


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}"])
def test_a_text_on_which_the_tokenizers_library_gives_up_is_a_user_error(template: str | None) -> None:
    tokenizer = micro_tokenizer(chat_template=template)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a|aa)+$"), "isolated")
    with pytest.raises(UserError, match=r"cannot turn a text of 61 characters into tokens \(.*: shorten or change"):
        prompt_ids(tokenizer, "a" * 60 + "b")


def test_an_answer_ends_with_the_end_token() -> None:
    tokenizer = micro_tokenizer()
    assert answer_ids(tokenizer, "") == [tokenizer.eos_token_id]
    assert tokenizer.decode(answer_ids(tokenizer, "ok")[:-1]) == "ok"


def test_a_template_that_refuses_a_role_is_a_user_error() -> None:
    tokenizer = micro_tokenizer("{{ raise_exception('only user and assistant') }}")
    with pytest.raises(UserError, match=r"roles tool: only user and assistant"):
        prompt_text(tokenizer, [{"role": "tool", "content": "x"}])
