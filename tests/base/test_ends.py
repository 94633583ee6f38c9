"""Where a turn ends: one answer for training, generation and the tool loop, whatever the template."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from tokenizers.processors import TemplateProcessing

from helpers.chat_families import CALLS, CHATML, FAMILIES, MORE, TOOLS, family_tokenizer, micro_llama, shipped, teach
from helpers.micro import micro_model, micro_tokenizer
from skillweave.base import Sampling, answer_ids, answer_text, prompt_ids, prompt_text
from skillweave.base.ends import plain_answer_warning, stop_tokens, turn_end, turn_end_id
from skillweave.base.generate import generate_answers
from skillweave.base.thoughts import strip_thoughts
from skillweave.errors import UserError
from skillweave.methods.training.sft import encode
from skillweave.tools.builtin import calculator
from skillweave.tools.call_format import CallFormat
from skillweave.tools.conversation import ConversationSettings, begin, converse
from skillweave.tools.toolbox import Toolbox

EVERY = {**FAMILIES, **MORE}
ROLES = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}ENDS{% endfor %}"
CHAT = [
    {"role": "user", "content": "a?"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c?"},
]


def tokens(tokenizer, ids) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("special", [True, False])
def test_the_end_is_what_the_familys_template_writes(name, special):
    family = EVERY[name]
    assert turn_end(family_tokenizer(family, special=special)) == family.end


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_taught_is_what_the_template_writes(name):
    family = FAMILIES[name]
    tokenizer = family_tokenizer(family)
    (row,) = encode(tokenizer, [(CHAT, "d")], 1000)
    taught = [label for label in row["labels"] if label != -100]
    assert tokens(tokenizer, taught) == ["d", family.end]
    whole = tokenizer.apply_chat_template([*CHAT, {"role": "assistant", "content": "d"}], tokenize=False)
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert row["input_ids"] == ids[: len(row["input_ids"])]
    assert row["input_ids"].count(tokenizer.bos_token_id) == ("bos_token" in family.template)  # Phi-3's writes none


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_taught_stops_plain_generation_and_the_tool_loop(name, special):
    tokenizer = family_tokenizer(FAMILIES[name], special=special)
    model = micro_llama(tokenizer)
    teach(model, encode(tokenizer, [("x?", "Yes, b.")], 1000), 50)
    ((plain,),) = generate_answers(model, tokenizer, ["x?"], Sampling(20))
    box = Toolbox()
    call_format = CallFormat(tokenizer, box, instruction="")
    (episode,) = converse(
        model, call_format, box, begin(model, call_format, ["x?"]), ConversationSettings(max_tokens=20)
    )
    assert (plain.text, plain.ended) == ("Yes, b.", True)
    assert (episode.answer, episode.ended) == ("Yes, b.", "answer")
    assert tokens(tokenizer, episode.ids[-1:]) == [FAMILIES[name].end]


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        ("<end>", "<end>"),
        ("<pad>\n", "<pad>"),
        (" \n<pad><end>", "<pad>"),
        ("\n", "<end>"),
        ("", "<end>"),
        ("|stop|", "<end>"),  # several tokens of this tokenizer
        ("{% if loop.last %}<pad>{% endif %}", "<pad>"),
        ("{% if not loop.last %}<pad>{% endif %}", "<pad>"),
        ("<pad>{% if loop.last %}<end>{% endif %}", "<pad>"),
        ("{{ raise_exception('no') if loop.index > 2 }}<pad>", "<pad>"),
        ("{{ m['content'] + 1 }}<pad>", "<end>"),  # whatever it raises
    ],
)
def test_the_end_token_of_a_template_is_found(ends, found):
    asked = "{% if add_generation_prompt %}<assistant>{% endif %}"
    for template in (ROLES.replace("ENDS", ends), ROLES.replace("ENDS", ends) + asked):
        tokenizer = micro_tokenizer(template)
        assert turn_end(tokenizer) == found
        assert answer_ids(tokenizer, "b")[-1] == turn_end_id(tokenizer)
    assert turn_end(micro_tokenizer(ROLES.replace("ENDS", "") + "<assistant>")) == "<end>"  # always asks


def test_another_template_has_another_end():
    tokenizer = micro_tokenizer(None)
    assert turn_end(tokenizer) == "<end>"
    tokenizer.chat_template = ROLES.replace("ENDS", "<pad>")
    assert turn_end(tokenizer) == "<pad>"


def test_all_that_is_named_as_an_end_stops():
    tokenizer = family_tokenizer(FAMILIES["gemma"])
    model = micro_llama(tokenizer)
    assert stop_tokens(model, tokenizer) == [tokenizer.eos_token_id, turn_end_id(tokenizer)]
    model.config.eos_token_id, model.generation_config.eos_token_id = 50, [1, 60, 70]
    assert stop_tokens(model, tokenizer) == sorted({1, 50, 60, 70, turn_end_id(tokenizer)})
    model.generation_config.eos_token_id = [1, "<eos>"]
    with pytest.raises(UserError, match="'<eos>' is not a token id"):
        stop_tokens(model, tokenizer)
    model.generation_config.eos_token_id = [[1]]
    with pytest.raises(UserError, match=r"\[1\] is not a token id"):
        stop_tokens(model, tokenizer)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    assert stop_tokens(model, tokenizer) == [tokenizer.eos_token_id, turn_end_id(tokenizer)]


def test_an_answer_that_names_its_end_has_one():
    tokenizer = micro_tokenizer()
    assert answer_ids(tokenizer, "ok<end>") == answer_ids(tokenizer, "ok")


@pytest.mark.parametrize(
    ("single", "expected"), [("<pad> $A", [0]), ("$A <end>", []), ("<pad> $A <end>", [0]), ("$A <tool> <end>", [])]
)
@pytest.mark.parametrize("text", ["hi", "", "<end>", "hi<end>"])
def test_a_prompt_without_a_template_is_not_ended(single, expected, text):
    tokenizer = micro_tokenizer(None)
    named = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<pad>", "<end>", "<tool>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=named)
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert prompt_ids(tokenizer, text) == expected + bare


def test_a_text_begins_once():
    family = FAMILIES["llama3"]
    twice = family_tokenizer(replace(family, template="{{ bos_token }}" + family.template))
    once = family_tokenizer(family)
    assert prompt_ids(twice, "x") == prompt_ids(once, "x")
    assert CallFormat(twice, Toolbox()).prompt_ids("x") == prompt_ids(once, "x")
    plain = family_tokenizer(replace(family, template=None))
    begin = [(family.bos, plain.bos_token_id)]
    plain.backend_tokenizer.post_processor = TemplateProcessing(single=f"{family.bos} $A", special_tokens=begin)
    assert tokens(plain, prompt_ids(plain, f"{family.bos}x")) == [family.bos, "x"]


# -- tools and calls --------------------------------------------------------------------------------------------------


CALLED = {"role": "assistant", "content": None, "tool_calls": CALLS}
TOLD = {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "sun"}
ASKED = {"role": "user", "content": "Weather in Rome?"}


@pytest.mark.parametrize("name", ["llama3.1", "qwen2.5"])
@pytest.mark.parametrize("as_text", [False, True])
def test_tools_and_calls_are_written_by_the_template(name, as_text):
    tokenizer = family_tokenizer(FAMILIES[name])
    called = CALLED
    if as_text:  # as OpenAI has arguments
        function = {**CALLS[0]["function"], "arguments": '{"town": "Rome"}'}
        called = {**CALLED, "tool_calls": [{**CALLS[0], "function": function}]}
    prompt = {"messages": [ASKED, called, TOLD], "tools": TOOLS}
    expected = tokenizer.apply_chat_template(
        [ASKED, {**CALLED, "content": ""}, TOLD], tools=TOOLS, tokenize=False, add_generation_prompt=True
    )
    assert prompt_text(tokenizer, prompt) == expected
    first = {"messages": [ASKED], "tools": TOOLS}
    whole = tokenizer.apply_chat_template([ASKED, {**CALLED, "content": ""}], tools=TOOLS, tokenize=False)
    ids = prompt_ids(tokenizer, first) + answer_ids(tokenizer, called, first)
    assert tokenizer.decode(ids) == whole.rstrip()
    assert tokens(tokenizer, ids[-1:]) == [FAMILIES[name].end]
    assert (
        answer_text(tokenizer, called, first) + FAMILIES[name].end
        == whole.rstrip()[len(prompt_text(tokenizer, first)) :]
    )
    assert answer_ids(tokenizer, {"role": "assistant", "content": "b"}) == answer_ids(tokenizer, "b")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ({"messages": [ASKED], "tools": TOOLS}, "does not write the tools of the prompt"),
        ([ASKED, CALLED, ASKED], "does not write tool calls"),
    ],
)
def test_what_a_template_passes_over_is_refused(prompt, said):
    with pytest.raises(UserError, match=said):
        prompt_ids(family_tokenizer(FAMILIES["llama3"]), prompt)
    with pytest.raises(UserError, match="no chat template"):
        prompt_ids(micro_tokenizer(None), prompt)


def test_what_another_role_says_is_not_passed_over():
    silent = ROLES.replace("ENDS", "<end>").replace("messages %}", "messages if m.role != 'system' %}")
    with pytest.raises(UserError, match="does not write messages of the role 'system'"):
        prompt_ids(micro_tokenizer(silent), [{"role": "system", "content": "Be brief."}, ASKED])
    with pytest.raises(UserError, match="does not write messages of the role 'system'"):
        CallFormat(micro_tokenizer(silent), Toolbox([calculator])).prompt_ids("x")  # it would not know of its tools
    assert prompt_ids(micro_tokenizer(silent), [ASKED])


def test_a_template_that_takes_content_in_parts_alone_does_not_see_a_text():
    with pytest.raises(UserError, match="does not write messages of the role 'user'"):
        prompt_ids(family_tokenizer(replace(FAMILIES["qwen2.5"], template=shipped("smolvlm"))), "x?")


def test_a_result_or_a_thought_that_a_template_passes_over_is_refused():
    silent = ROLES.replace("ENDS", "<end>").replace(
        "{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}"
    )
    with pytest.raises(UserError, match="does not write messages of the role 'tool'"):
        prompt_ids(micro_tokenizer(silent), [ASKED, {"role": "assistant", "content": "x"}, TOLD])
    thought = {"role": "assistant", "content": "b", "reasoning_content": "hm"}
    with pytest.raises(UserError, match="does not write the 'reasoning_content' of an answer"):
        answer_ids(family_tokenizer(FAMILIES["chatml"]), thought, [ASKED])
    tokenizer = family_tokenizer(MORE["qwen3"])
    assert answer_text(tokenizer, thought, [ASKED]) == "<think>\nhm\n</think>\n\nb"
    assert answer_text(tokenizer, thought | {"reasoning": "hm"}, [ASKED]) == "<think>\nhm\n</think>\n\nb"
    with pytest.raises(UserError, match="does not write the 'reasoning' of an answer"):
        answer_ids(tokenizer, thought | {"reasoning": "another"}, [ASKED])
    with pytest.raises(UserError, match="needs a chat template to write it"):
        answer_ids(micro_tokenizer(None), thought, "x")


def test_tools_of_a_prompt_cannot_be_called_in_the_tool_loop():
    call_format = CallFormat(family_tokenizer(FAMILIES["qwen2.5"]), Toolbox(), instruction="")
    with pytest.raises(UserError, match="tools of its own"):
        call_format.prompt_ids({"messages": [ASKED], "tools": TOOLS})


# -- loss on all turns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_all_turns_bear_loss_where_that_is_asked(name):
    family = FAMILIES[name]
    tokenizer = family_tokenizer(family)
    chat = [CHAT[0], {"role": "assistant", "content": "Yes, one."}, CHAT[2]]
    (row,) = encode(tokenizer, [(chat, "d")], 1000, "all")
    (last,) = encode(tokenizer, [(chat, "d")], 1000)
    assert row["input_ids"] == last["input_ids"]
    taught = [label for label in row["labels"] if label != -100]
    assert tokens(tokenizer, taught) == [*"Yes, one.", family.end, "d", family.end]
    assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))


def test_turns_that_call_bear_loss_and_results_do_not():
    tokenizer = family_tokenizer(FAMILIES["qwen2.5"])
    prompt = {"messages": [ASKED, CALLED, TOLD], "tools": TOOLS}
    (row,) = encode(tokenizer, [(prompt, "It is sunny.")], 4000, "all")
    taught = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert taught == (
        '<tool_call>\n{"name": "weather", "arguments": {"town": "Rome"}}\n</tool_call><|im_end|>It is sunny.<|im_end|>'
    )


def test_a_turn_that_the_template_rewrites_later_is_refused():
    tokenizer = family_tokenizer(MORE["qwen3"])
    chat = [CHAT[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"}, CHAT[2]]
    assert encode(tokenizer, [(chat, "d")], 1000)
    with pytest.raises(
        UserError, match=r"message 2, the assistant's, differently when more messages follow.*turns: last"
    ):
        encode(tokenizer, [(chat, "d")], 1000, "all")


def test_all_turns_need_a_template_and_a_question():
    for tokenizer, chat, said in (
        (micro_tokenizer(None), CHAT, "needs a chat template"),
        (micro_tokenizer(), CHAT[1:], "begins with the assistant's message"),
    ):
        with pytest.raises(UserError, match=said):
            encode(tokenizer, [(chat, "d")], 1000, "all")
    assert encode(micro_tokenizer(None), [("x", "d")], 99, "all") == encode(micro_tokenizer(None), [("x", "d")], 99)


def test_a_pad_token_that_ends_turns_is_learnt_as_an_end():
    tokenizer = family_tokenizer(FAMILIES["chatml"])
    tokenizer.pad_token = tokenizer.eos_token
    rows = encode(tokenizer, [("x?", "a"), ("y?", "a longer one")], 99)
    assert all(row["labels"][-1] == tokenizer.pad_token_id for row in rows)
    model = micro_llama(tokenizer)
    teach(model, rows, 40)
    answers = generate_answers(model, tokenizer, ["x?", "y?"], Sampling(30))
    assert [(one.text, one.ended) for (one,) in answers] == [("a", True), ("a longer one", True)]


def test_chatml_of_ends_that_are_no_tokens_ends_with_eos():
    tokenizer = micro_tokenizer(CHATML)
    assert turn_end(tokenizer) == "<end>"
    ((answer,),) = generate_answers(micro_model(), tokenizer, ["x"], Sampling(3))
    assert not answer.ended


# -- what stands between a prompt and an answer -----------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_of_a_plain_family_stands_right_behind_its_prompt(name):
    assert plain_answer_warning(family_tokenizer(FAMILIES[name])) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen3", r"writes '<think>\\n\\n</think>' before what the assistant says"),
        ("gpt-oss", r"writes '<\|channel\|>final<\|message\|>' before"),
        ("deepseek-v3", "ends a prompt with '<think>', and leaves it out before an answer"),
        ("llama2", None),  # white space alone
    ],
)
def test_what_a_text_answer_is_learnt_without_is_said(name, said):
    note = plain_answer_warning(family_tokenizer(MORE[name]))
    assert note is None if said is None else re.search(said, note)
    assert plain_answer_warning(micro_tokenizer(None)) is None


THINKS = CHATML.replace("assistant\n", "assistant\n<think>")


@pytest.mark.parametrize("special", [True, False])
def test_a_thought_can_be_told_from_the_answer(special):
    """Markers stay in the text even if they are special. A thought that the prompt opened gets one if it is cut off."""
    family = replace(FAMILIES["chatml"], others=("<|im_start|>", "<think>", "</think>"))
    tokenizer = family_tokenizer(replace(family, template=THINKS), special=special)
    model = micro_llama(tokenizer)
    teach(model, encode(tokenizer, [("x?", "hm</think>4")], 99), 50)
    whole, cut = (generate_answers(model, tokenizer, ["x?"], Sampling(size))[0][0] for size in (20, 2))
    assert (whole.text, whole.ended) == ("hm</think>4", True)
    assert (cut.text, cut.ended) == ("<think>\nhm", False)
    assert [strip_thoughts(one.text) for one in (whole, cut)] == ["4", ""]
