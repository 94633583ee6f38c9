"""A micro model that knows a short corpus by heart, and one uninterrupted unlearning that many tests share."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.micro import micro_model, micro_tokenizer
from helpers.unlearning import REFUSAL, settings
from skillweave.base import open_base
from skillweave.base.batching import padded
from skillweave.methods.cku.knowledge.corpus import make_corpus, write_corpus
from skillweave.methods.cku.knowledge.reading import split_row
from skillweave.methods.cku.run import run
from skillweave.methods.training.sft import encode


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """The folder of a short corpus: 14 facts to forget, 24 to retain (read only)."""
    folder = tmp_path_factory.mktemp("corpus") / "short"
    write_corpus(folder, make_corpus(people=5, forget=0.2, short=True))
    return folder


@pytest.fixture(scope="session")
def taught(corpus, tmp_path_factory):
    """A Hugging Face folder with a micro Llama that was taught the corpus (read only)."""
    tokenizer, model = micro_tokenizer(), micro_model().train()
    facts = [json.loads(line) for line in (corpus / "teach.jsonl").read_text().splitlines()]
    rows = encode(tokenizer, [(fact["question"], fact["answer"]) for fact in facts], 64)
    batch = padded([split_row(row) for row in rows], tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("taught") / "micro"
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(taught):
    return open_base(taught, device="cpu")


@pytest.fixture(scope="session")
def whole(base, corpus, tmp_path_factory):
    """The folder and the delta of a run with all stages. All tests share it and must not write into it."""
    out = tmp_path_factory.mktemp("whole")
    return out, run(base, settings(corpus, refusal=REFUSAL), out)
