"""A partly trained micro model that can look things up, and one unbroken run that many tests share."""

from __future__ import annotations

import pytest
import torch

from helpers.agents import CONTEXT, SFT, WORDS, UnbrokenRun, agent, expert_traces, note_groups, settings
from helpers.micro import micro_tokenizer
from skillweave.base import open_base
from skillweave.methods.e3tir.run import run
from skillweave.methods.e3tir.trace_tokens import supervised_rows
from skillweave.micro import MicroShape, micro_model


@pytest.fixture(scope="session")
def hops():
    return agent()


@pytest.fixture(scope="session")
def traces(hops):
    return expert_traces(hops)


@pytest.fixture(scope="session")
def taught(traces, tmp_path_factory):
    """A Hugging Face folder with a micro Llama that was trained on the traces too briefly (read only)."""
    model = micro_model(MicroShape(hidden=48, intermediate=96, context=CONTEXT), 1, len(WORDS)).train()
    rows = supervised_rows(list(traces.values()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(28):
        for row in (rows[:5], rows[5:]):  # all of one length
            batch = {name: torch.tensor([one[name] for one in row]) for name in ("input_ids", "labels")}
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("taught") / "micro"
    model.eval().save_pretrained(folder)
    micro_tokenizer(words=WORDS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(taught):
    return open_base(taught, device="cpu")


@pytest.fixture(scope="session")
def whole(base, tmp_path_factory):
    """A run with all stages, made once for all tests; the tests must not write into it."""
    seen = UnbrokenRun(
        tmp_path_factory.mktemp("whole"), {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    )
    with pytest.MonkeyPatch.context() as patch:
        note_groups(patch, seen.played)
        seen.delta = run(base, settings(sft=SFT), seen.out)
    return seen
