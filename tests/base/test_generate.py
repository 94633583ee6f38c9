"""Batched answers equal those of one prompt at a time, and invalid input is refused."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from helpers.micro import micro_model, micro_tokenizer, save_micro
from skillweave.base import Sampling, generate, open_base, prompt_ids
from skillweave.base.chat import text_of
from skillweave.base.defaults import generation_config_at
from skillweave.base.ends import stop_tokens
from skillweave.errors import UserError

PROMPTS = ["a", "a much longer prompt than the first", "mid one", "a"]


@torch.no_grad()
def greedy_by_hand(prompt: str, tokens: int) -> str:
    """Return the greedy answer, computed one token at a time without a cache."""
    model, tokenizer = micro_model(), micro_tokenizer()
    ids = prompt_ids(tokenizer, prompt)
    start = len(ids)
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_greedy_batches_give_what_each_prompt_gives_alone() -> None:
    answers = generate(micro_model(), micro_tokenizer(), PROMPTS, Sampling(max_new_tokens=7, batch_size=3))
    assert answers == [[greedy_by_hand(prompt, 7)] for prompt in PROMPTS]


def test_sampling_repeats_with_its_seed_and_leaves_the_global_generator_alone() -> None:
    sampling = Sampling(max_new_tokens=5, temperature=1.0, samples=3, seed=4)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = generate(micro_model(), micro_tokenizer(), PROMPTS, sampling)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert generate(micro_model(), micro_tokenizer(), PROMPTS, sampling) == first
    assert [len(texts) for texts in first] == [3] * 4
    assert len({text for texts in first for text in texts}) > 4
    assert generate(micro_model(), micro_tokenizer(), PROMPTS, Sampling(5, 1.0, samples=3, seed=5)) != first


def test_around_batch_names_the_prompt_behind_every_row() -> None:
    seen: list[int] = []

    @contextmanager
    def around(rows: list[int]):
        seen.extend(rows)
        yield

    generate(micro_model(), micro_tokenizer(), PROMPTS, Sampling(2, batch_size=2, samples=2), around_batch=around)
    assert sorted(seen) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_no_prompts_give_no_answers_and_the_context_is_kept() -> None:
    model, tokenizer = micro_model(context=32), micro_tokenizer()
    assert generate(model, tokenizer, []) == []
    (answer,) = generate(model, tokenizer, ["x" * 20], Sampling(max_new_tokens=100))[0]
    assert len(answer) <= 32 - len(prompt_ids(tokenizer, "x" * 20))
    with pytest.raises(UserError, match=r"prompt 2 has .* the model's context is 32"):
        generate(model, tokenizer, ["x", "x" * 40])


def test_a_prompt_near_the_end_of_the_context_does_not_cut_short_its_neighbours() -> None:
    prompts = ["x", "x" * 20]  # together in a batch, the first would have to stop where the second must
    model, tokenizer = micro_model(context=34), micro_tokenizer()
    together = generate(model, tokenizer, prompts, Sampling(max_new_tokens=24))
    assert together == [generate(model, tokenizer, [prompt], Sampling(max_new_tokens=24))[0] for prompt in prompts]


OF_A_FILE = {
    "no_repeat_ngram_size": 1, "min_new_tokens": 20, "min_length": 30, "suppress_tokens": [37],
    "repetition_penalty": 5.0,
    "bad_words_ids": [[37]], "num_beams": 3, "exponential_decay_length_penalty": [1, 5.0], "length_penalty": 0.5,
    "encoder_repetition_penalty": 5.0, "forced_eos_token_id": 40, "forced_bos_token_id": 41, "max_time": 0.0001,
    "begin_suppress_tokens": [37], "sequence_bias": [[[37], -50.0]], "guidance_scale": 3.0, "stop_strings": ["a", " "],
    "penalty_alpha": 0.6, "prompt_lookup_num_tokens": 3, "max_length": 5, "max_new_tokens": 2, "temperature": 0.01,
    "top_k": 1, "top_p": 0.01, "min_p": 0.9, "typical_p": 0.05, "epsilon_cutoff": 0.4, "eta_cutoff": 0.4,
    "do_sample": True,
    "num_return_sequences": 3, "return_dict_in_generate": True, "output_scores": True, "use_cache": False,
    "cache_implementation": "static", "renormalize_logits": True, "remove_invalid_values": True, "token_healing": True,
    "watermarking_config": {"bias": 9.0, "seeding_scheme": "selfhash"}, "low_memory": True, "dola_layers": "low",
}  # fmt: skip


@pytest.mark.parametrize("key", OF_A_FILE)
def test_what_a_generation_config_holds_changes_nothing(key: str) -> None:
    model, tokenizer = micro_model(), micro_tokenizer()
    for sampling in (Sampling(7), Sampling(5, 3.0, samples=2)):
        plain = generate(micro_model(), tokenizer, PROMPTS[:2], sampling)
        held = model.generation_config
        setattr(held, key, OF_A_FILE[key])
        assert generate(model, tokenizer, PROMPTS[:2], sampling) == plain
        assert model.generation_config is held
        assert getattr(held, key) == OF_A_FILE[key]


def test_the_models_generation_config_is_there_again_after_a_failure() -> None:
    model, tokenizer = micro_model(), micro_tokenizer()
    held = model.generation_config

    class Broken:
        def put(self, value: torch.Tensor) -> None:
            raise RuntimeError("the terminal is gone")

    with pytest.raises(RuntimeError, match="the terminal"):
        generate(model, tokenizer, ["x"], streamer=Broken())
    assert model.generation_config is held


def test_a_models_own_defaults_count_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = micro_model(), micro_tokenizer()
    asked = Sampling(7, samples=3, model_defaults=True)
    greedy = generate(model, tokenizer, PROMPTS, Sampling(7, samples=3))
    assert generate(model, tokenizer, PROMPTS, asked) == greedy  # the file says nothing
    held = model.generation_config
    held.temperature, held.top_k = 3.0, 4
    assert generate(model, tokenizer, PROMPTS, asked) == greedy  # nor does it say do_sample
    held.do_sample = True
    drawn = generate(model, tokenizer, PROMPTS, asked)
    assert drawn != greedy
    held.top_k = 1
    assert generate(model, tokenizer, PROMPTS, asked) == greedy
    held.top_k, held.suppress_tokens = None, list(range(40, 60))
    held.max_new_tokens, held.num_beams, held.max_time = 2, 3, 0.0001
    written = generate(model, tokenizer, PROMPTS, asked)
    assert max(len(text) for texts in written for text in texts) > 2
    never = set(map(tokenizer.convert_ids_to_tokens, range(40, 60)))
    assert not never & set("".join(text for texts in written for text in texts))
    assert "not used of the model's generation_config.json: max_time, num_beams" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("top_p", "high", "'high', expected a number from 0 to 1"),
        ("top_k", 1.0, "1.0, expected a whole number from 0"),
        ("no_repeat_ngram_size", 1.5, "1.5, expected a whole number from 0"),
        ("typical_p", 0.0, "0.0, expected a number from 0.01 to 1"),
        ("bad_words_ids", [[5], [99999]], r"\[\[5\], \[99999\]\], expected lists of token ids from 0 to 101"),
        ("bad_words_ids", [5], r"\[5\], expected lists of token ids"),
        ("sequence_bias", [[[5], "x"]], r".*, expected lists of token ids"),
        ("sequence_bias", {"a": 1.0}, r".*, expected lists of token ids"),
        ("suppress_tokens", "x", "'x', expected lists of token ids"),
        ("begin_suppress_tokens", [1.5], r"\[1.5\], expected lists of token ids"),
    ],
)
def test_a_value_that_cannot_be_used_is_a_users_mistake(key: str, value: object, shown: str) -> None:
    model, tokenizer = micro_model(), micro_tokenizer()
    model.generation_config.do_sample = True
    setattr(model.generation_config, key, value)
    assert generate(model, tokenizer, ["x"], Sampling(2))
    with pytest.raises(UserError, match=rf"generation_config\.json: {key} is {shown}"):
        generate(model, tokenizer, ["x"], Sampling(2, model_defaults=True))


def test_rules_about_tokens_and_tiny_temperatures_can_be_used() -> None:
    model, tokenizer = micro_model(), micro_tokenizer()
    held = model.generation_config
    held.do_sample, held.temperature = True, 1e-40
    greedy = generate(model, tokenizer, PROMPTS, Sampling(5))
    assert generate(model, tokenizer, PROMPTS, Sampling(5, model_defaults=True)) == greedy
    assert generate(model, tokenizer, PROMPTS, Sampling(5, 1e-40)) == greedy
    first = tokenizer(greedy[0][0], add_special_tokens=False)["input_ids"][0]
    held.bad_words_ids, held.suppress_tokens, held.sequence_bias = [[first]], [], [[[first, 7], -1.5]]
    assert generate(model, tokenizer, PROMPTS, Sampling(5, model_defaults=True))[0] != greedy[0]


def test_a_generation_config_that_transformers_refuses_leaves_its_ends(tmp_path: Path, capsys) -> None:
    folder = save_micro(tmp_path / "base")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [1, 40], "num_return_sequences": 3}))
    base = open_base(folder)
    assert stop_tokens(base.model, base.tokenizer) == [1, 40]
    assert "Its end tokens are used" in capsys.readouterr().err
    path.write_text("[1]")
    with pytest.raises(UserError, match=r"generation_config\.json: expected a JSON object"):
        open_base(folder)


@pytest.mark.parametrize("text", ["x != y , 'z' .", "do n't , I 'm !", " a  b \n ?"])
def test_spaces_are_as_the_model_wrote_them(text: str) -> None:
    tokenizer = micro_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    assert text_of(tokenizer, tokenizer(text)["input_ids"]) == text


def test_the_generation_config_adds_its_stop_tokens() -> None:
    model, tokenizer = micro_model(), micro_tokenizer()
    model.generation_config.eos_token_id = [1, 40]
    assert stop_tokens(model, tokenizer) == [1, 40]
    model.generation_config.eos_token_id = None
    assert stop_tokens(model, tokenizer) == [1]


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize(
    ("value", "shown"), [({}, "{}"), ("1", "'1'"), (1.5, "1.5"), (True, "True"), ([1, [2]], r"\[2\]")]
)
def test_the_id_of_a_token_is_a_whole_number(tmp_path: Path, key: str, value: object, shown: str) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(UserError, match=f"generation_config.json: {key} holds {shown}; expected the number of a token"):
        generation_config_at(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pad_token_id": [0]}, r"pad_token_id holds \[0\]; expected the number of one token"),
        ({"eos_token_id": -(2**63) - 1}, "eos_token_id is -9223372036854775809, which no vocabulary reaches"),
        ({"eos_token_id": [1, 2**40]}, "eos_token_id is 1099511627776, which no vocabulary reaches"),
    ],
)
def test_the_id_of_a_token_is_one_that_a_vocabulary_can_have(tmp_path: Path, values: dict, message: str) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"generation_config.json: {message}"):
        generation_config_at(tmp_path)
