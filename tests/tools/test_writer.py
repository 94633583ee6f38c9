"""The writer: what a row says hangs on its context and seed alone; shared prefixes change nothing; the done leave."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
)

from helpers.micro import micro_model, micro_tokenizer
from skillweave.base.chat import text_of
from skillweave.base.generate import Sampling, generate_answers
from skillweave.tools.call_format import CallFormat
from skillweave.tools.conversation import ConversationSettings, begin, converse
from skillweave.tools.toolbox import Toolbox
from skillweave.tools.writer import Writer, choose, less_likely, longest

CONTEXTS = [[7, 8, 9, 10], [7, 8, 9, 10], [7, 8], [12], [7, 8, 9, 30, 31, 32], [40, 41, 42]]


@pytest.fixture(scope="module")
def model():
    return micro_model()


def written(model, contexts=CONTEXTS, room=12, seeds=range(100), **options):
    writer = Writer(model, micro_tokenizer(), **options)
    found = dict(writer.write(contexts, [room] * len(contexts), list(seeds)[: len(contexts)]))
    return [found[index] for index in range(len(contexts))]


def slow(model, context, room, seed, stops, temperature=1.0):
    """One token after the other, nothing kept, nothing batched."""
    chances = torch.rand(room, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ids: list[int] = []
    for chance in chances:
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *ids]])).logits[0, -1]
        if temperature == 0:
            ids.append(int(logits.argmax()))
        else:
            ends = (logits / temperature).softmax(dim=-1).double().cumsum(dim=-1)
            ids.append(int((ends <= chance * ends[-1]).sum()))
        if ids[-1] in stops:
            break
    return ids


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_it_writes_what_one_row_alone_would(model, temperature, share, batch_size):
    found = written(model, temperature=temperature, share=share, batch_size=batch_size)
    stops = Writer(model, micro_tokenizer()).stops
    for context, seed, ids in zip(CONTEXTS, range(100), found, strict=False):
        assert ids == slow(model, context, 12, seed, stops, temperature)


def test_equal_contexts_with_other_seeds_differ_and_with_equal_seeds_do_not(model):
    one, other, again = written(model, [[7, 8, 9]] * 3, seeds=[1, 2, 1])
    assert one == again != other


def test_it_stops_at_the_end_token_of_the_template_too(model):
    turns = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<pad>{% endfor %}"
    assert Writer(model, micro_tokenizer(turns)).stops == [0, 1]
    assert Writer(model, micro_tokenizer()).stops == [1]
    assert Writer(model, micro_tokenizer(None)).stops == [1]


def test_every_row_has_its_own_room(model):
    writer = Writer(model, micro_tokenizer())
    found = dict(writer.write([[5, 6]] * 3, [1, 3, 9], [4, 4, 4]))
    assert found[2][:1] == found[0]
    assert found[2][:3] == found[1]
    assert len(found[2]) <= 9


def test_a_finished_turn_comes_before_longer_ones_are_written(model):
    writer = Writer(model, micro_tokenizer())
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    turns = writer.write([[5, 6]] * 4, [2, 9, 9, 9], [1, 2, 3, 4])
    index, _ = next(turns)
    assert index == 0
    assert len(calls) <= 3  # the prefix, and two tokens
    turns.close()
    model._forward_pre_hooks.clear()


def test_a_turn_ends_with_the_end_token(model):
    biased = micro_model()
    with torch.no_grad():
        biased.model.embed_tokens.weight[1] = 0.3 * biased.model.embed_tokens.weight[2:].sum(dim=0)
    found = written(biased, [[7, 8]] * 32, room=50)
    ended = [ids for ids in found if ids[-1] == 1]
    assert ended
    assert all(1 not in ids[:-1] for ids in found)
    assert all(len(ids) == 50 for ids in found if ids[-1] != 1)


def test_shared_prefixes_are_computed_once(model):
    seen = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0].numel()), with_kwargs=True)
    trace = list(range(5, 25))
    contexts = [trace[:cut] for cut in (6, 6, 6, 12, 18)] + [trace] * 3
    written(model, contexts, room=1)
    assert seen == [len(trace) - 1, len(contexts)]
    seen.clear()
    written(model, contexts, room=1, share=False)
    assert seen == [len(contexts) * (len(trace) - 1), len(contexts)]
    hook.remove()


def test_a_model_with_a_sliding_window_is_written_from_as_well():
    torch.manual_seed(0)
    config = MistralConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                           num_key_value_heads=1, vocab_size=102, sliding_window=4, initializer_range=0.2,
                           eos_token_id=1, pad_token_id=0)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    contexts = [[7, 8, 9, 10, 11, 12, 13], [7, 8, 9, 10, 11, 12, 13], [7, 8, 9]]
    assert written(model, contexts) == [slow(model, context, 12, seed, [1]) for seed, context in enumerate(contexts)]


def test_training_mode_is_given_back_and_no_gradient_flows(model):
    model.train()
    written(model, room=2)
    assert model.training
    model.eval()


def test_longest_names_each_head_one_that_begins_with_it():
    heads = [[1, 2], [1, 2, 3], [1], [2, 2], [], [1, 2, 3], [1, 3]]
    roots, root_of = longest(heads)
    assert sorted(map(tuple, roots)) == [(1, 2, 3), (1, 3), (2, 2)]
    for head, root in zip(heads, root_of, strict=True):
        assert list(roots[root][: len(head)]) == head


def test_choose_lays_the_probabilities_end_to_end():
    logits = torch.tensor([[0.5, 0.2, 0.3]]).log()
    for chance, token in ((0.0, 0), (0.49, 0), (0.51, 1), (0.69, 1), (0.71, 2), (0.999999, 2)):
        assert choose(logits, torch.tensor([chance], dtype=torch.float64), 1.0, 1.0).item() == token
        assert choose(logits, torch.tensor([chance], dtype=torch.float64), 1e-40, 1.0).item() == int(logits.argmax())
    for chance in (0.0, 0.3, 0.6, 0.99):  # 0.5 and 0.3 are the nucleus
        token = choose(logits, torch.tensor([chance], dtype=torch.float64), 1.0, 0.6).item()
        assert token == (0 if chance < 0.5 / 0.8 else 2)
    impossible = torch.tensor([[float("-inf"), 0.0, float("-inf")]])
    for chance in (0.0, 0.5, 0.999999):
        assert choose(impossible, torch.tensor([chance], dtype=torch.float64), 1.0, 1.0).item() == 1


def test_choose_draws_as_often_as_the_probabilities_say():
    probabilities = torch.tensor([0.1, 0.6, 0.25, 0.05])
    chance = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = choose(probabilities.log().expand(20_000, 4), chance, 1.0, 1.0)
    share = torch.bincount(drawn, minlength=4) / 20_000
    assert torch.allclose(share, probabilities, atol=0.015)


# -- what a model's own defaults ask for ------------------------------------------------------------------------------


def test_penalty_and_top_k_are_those_of_transformers():
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[1, 1, 5], [7, 8, 9], [0, 19, 0]])
    penalised = RepetitionPenaltyLogitsProcessor(1.7)(tokens, logits.clone())
    assert torch.equal(torch.stack([less_likely(*pair, 1.7) for pair in zip(logits, tokens, strict=True)]), penalised)
    likeliest = TopKLogitsWarper(4)(tokens, logits)
    for chance in torch.linspace(0, 1, 50)[:-1].double():
        draws = chance.expand(3)
        assert torch.equal(choose(logits, draws, 0.8, 1.0, 4), choose(likeliest, draws, 0.8, 1.0))
    assert torch.equal(choose(logits, draws, 0.8, 1.0, 50), choose(logits, draws, 0.8, 1.0))


def test_the_tool_loop_takes_a_models_defaults_where_asked(model, capsys):
    model, tokenizer, box = micro_model(), micro_tokenizer(), Toolbox()
    call_format = CallFormat(tokenizer, box, instruction="")

    def held(**how) -> list[list[int]]:
        starts = begin(model, call_format, ["hello", "x", "12"])
        return [
            one.ids for one in converse(model, call_format, box, starts, ConversationSettings(max_tokens=12), **how)
        ]

    greedy = held()
    model.generation_config.repetition_penalty, model.generation_config.min_p = 3.0, 0.5
    assert held() == greedy
    penalised = held(model_defaults=True)
    assert penalised != greedy
    model.generation_config.min_p = None
    plain = generate_answers(model, tokenizer, ["hello", "x", "12"], Sampling(12, model_defaults=True))
    assert [text_of(tokenizer, ids) for ids in penalised] == [answer.text for (answer,) in plain]
    model.generation_config.do_sample, model.generation_config.top_k = True, 1
    assert held(model_defaults=True) == penalised
    model.generation_config.no_repeat_ngram_size = 2
    held(model_defaults=True)
    assert "not used of the model's generation_config.json: no_repeat_ngram_size" in capsys.readouterr().err
