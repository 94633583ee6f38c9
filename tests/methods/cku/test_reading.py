"""A reading is what one finds by asking the model for each token in turn."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch

from helpers.unlearning import model_with
from skillweave.base.chat import answer_ids, prompt_ids
from skillweave.methods.cku.knowledge.facts import Fact, fact_rows, read_facts
from skillweave.methods.cku.knowledge.reading import read_rows, split_row, truth_ratios

TEXT = Fact("t", None, "velkrum of the grade robel is amber, and is kept in a jar.", None, (), "")


@pytest.fixture(scope="module")
def model(base):
    return model_with(base, None)


@pytest.fixture(scope="module")
def facts(corpus):
    """Known ones, strange ones, and a text."""
    return [*read_facts([corpus / "forget.jsonl"])[:5], *read_facts([corpus / "unseen.jsonl"])[:6], TEXT]


@pytest.fixture(scope="module")
def rows(base, facts):
    return fact_rows(base.tokenizer, facts, 64)[0]


def token_by_token(model, row) -> tuple[list[float], list[bool]]:
    """The log-probability of each token of an answer without its end, and whether it is the likeliest, one forward
    pass each."""
    before, answer = split_row(row)
    answer = answer[: len(answer) - row["end"][0]]
    log_probs, top = [], []
    for token in answer:
        with torch.no_grad():
            logits = model(torch.tensor([before])).logits[0, -1].double()
        log_probs.append(float(logits.log_softmax(-1)[token]))
        top.append(int(logits.argmax()) == token)
        before = [*before, token]
    return log_probs, top


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_reading_is_what_asking_token_by_token_gives(model, rows, batch_size):
    reading = read_rows(model, rows, 0, batch_size=batch_size, bf16=False)
    strengths = set()
    for at, row in enumerate(rows):
        log_probs, top = token_by_token(model, row)
        count = len(log_probs)
        right_to_the_end = next(k for k in range(count + 1) if all(top[k:]))
        strengths.add(round(1 - right_to_the_end / count, 3))
        assert reading.tokens[at] == count
        assert reading.log_prob[at] == pytest.approx(sum(log_probs), rel=1e-4, abs=1e-4)
        assert reading.per_token[at] == pytest.approx(sum(log_probs) / count, rel=1e-4, abs=1e-4)
        assert reading.probability[at] == pytest.approx(math.prod(map(math.exp, log_probs)) ** (1 / count), rel=1e-3)
        assert reading.strength[at] == pytest.approx(1 - right_to_the_end / count, abs=1e-6)
        assert reading.memorised[at] == pytest.approx(fmean(top), abs=1e-6)
        lowest = sorted(log_probs)[: max(1, count // 5)]
        assert reading.min_k[at] == pytest.approx(fmean(lowest), rel=1e-4, abs=1e-4)
    assert {1.0} < strengths  # known and unknown are among them
    means = reading.means()
    assert means == {
        "strength": fmean(reading.strength),
        "memorised": fmean(reading.memorised),
        "probability": fmean(reading.probability),
        "log_prob": fmean(reading.per_token),
    }


def test_the_mode_of_the_model_stays_and_no_gradient_is_made(model, rows):
    for training in (True, False):
        model.train(training)
        read_rows(model, rows[:2], 0, batch_size=2, bf16=False)
        assert model.training == training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_text_is_read_whole_but_for_its_first_token(base, model):
    (row,), _ = fact_rows(base.tokenizer, [TEXT], 256)
    reading = read_rows(model, [row], 0, batch_size=1, bf16=False)
    assert reading.tokens == [len(base.tokenizer(TEXT.answer)["input_ids"]) - 1]


def test_bfloat16_is_what_autocast_gives(model, rows):
    reading = read_rows(model, rows[:4], 0, batch_size=4, bf16=True)
    full = read_rows(model, rows[:4], 0, batch_size=4, bf16=False)
    assert reading.log_prob != full.log_prob
    assert reading.log_prob == pytest.approx(full.log_prob, rel=0.2, abs=0.2)


def test_a_truth_ratio_is_the_mean_of_the_wrong_answers_beside_the_right_one(base, model, corpus):
    def likelihood(prompt, answer) -> float:
        ids, total = prompt_ids(base.tokenizer, prompt), 0.0
        tokens = answer_ids(base.tokenizer, answer)[:-1]
        for token in tokens:
            with torch.no_grad():
                total += float(model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token])
            ids = [*ids, token]
        return math.exp(total / len(tokens))

    known = read_facts([corpus / "forget.jsonl"])[:2]
    again = Fact("a", known[0].prompt, known[0].answer, "in other words", known[0].wrong[:2], "")
    without = Fact("b", "who?", "nobody", None, (), "")
    too_long = Fact("c", "who?", "nobody", None, ("x" * 80,), "")
    asked = [known[0], without, again, TEXT, too_long, known[1]]
    found = truth_ratios(model, base.tokenizer, asked, 64, batch_size=3, bf16=False)
    expected = []
    for fact in (known[0], again, known[1]):
        wrong = fmean(likelihood(fact.prompt, answer) for answer in fact.wrong)
        expected.append(wrong / likelihood(fact.prompt, fact.paraphrased or fact.answer))
    assert found == pytest.approx(expected, rel=1e-3)
    assert found[0] < 0.5  # it knows
    assert truth_ratios(model, base.tokenizer, [TEXT, without], 64, batch_size=3, bf16=False) == []
