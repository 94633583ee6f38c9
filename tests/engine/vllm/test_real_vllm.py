"""The demo's packs in a real vLLM: an adapter does there what its pack does here, and another adapter does not.

Name an interpreter with vLLM: ``SKILLWEAVE_VLLM_PYTHON=.../python pytest -m slow -s tests/engine/vllm``.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
import torch

from skillweave.base import Sampling
from skillweave.engine import CountedReply
from skillweave.engine.vllm import VllmEngine, VllmServer, export_vllm
from skillweave.weave import Weave

PYTHON = os.environ.get("SKILLWEAVE_VLLM_PYTHON", "")
DEMO = Path(__file__).parents[3] / "runs" / "demo"
PROMPTS = {
    "json_calls": "Call the tool for this request: set an alarm for 7:30 in the morning.",
    "reverse_words": "Reverse the order of these words: winter brings cold rain",
    "sort_numbers": "Sort these numbers from least to greatest: 42, 7, 19, 3, 88",
}
TOKENS = 24

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="SKILLWEAVE_VLLM_PYTHON names no interpreter with vLLM"),
    pytest.mark.skipif(not (DEMO / "weave.json").is_file(), reason="runs/demo is missing: run `make demo`"),
]


@pytest.mark.timeout(600)
def test_an_adapter_does_in_vllm_what_its_pack_does_here(tmp_path: Path) -> None:
    exported = export_vllm(DEMO, tmp_path / "out")
    assert all(not adapter.missing for adapter in exported.card.packs.values())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = VllmServer(
        exported.path,
        port=port,
        python=PYTHON,
        options=["--max-model-len", "512", "--max-num-seqs", "8"],
        environment={"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": ""},
        log=tmp_path / "log",
    )

    async def ask() -> dict[str, CountedReply]:
        async with VllmEngine(exported.path, [server]) as engine:
            asked = [engine.submit(PROMPTS[pack], pack, Sampling(TOKENS), logprobs=1) for pack in PROMPTS]
            replies = await asyncio.gather(*(one.reply() for one in asked))
            drawn = [engine.submit("Say something.", None, Sampling(8, temperature=1.0, seed=3)) for _ in range(2)]
            texts = [(await one.reply()).text for one in drawn]
            assert texts[0] == texts[1]  # a seed draws the same again
            return dict(zip(PROMPTS, replies, strict=True))

    replies = asyncio.run(ask())
    weave = Weave.from_pretrained(DEMO, device="cpu", dtype="float32", budget=10**9)
    print()
    for pack, reply in replies.items():
        apart = {other: mean_difference(weave, pack, reply, other) for other in (*PROMPTS, None)}
        print(f"{pack}: {reply.text!r}: " + ", ".join(f"{other}: {value:.3f}" for other, value in apart.items()))
        own = apart.pop(pack)
        assert own < 0.1
        assert min(apart.values()) > 3 * own


def mean_difference(weave: Weave, pack: str, reply: CountedReply, other: str | None) -> float:
    """The mean difference, in nats per token, between vLLM's log-probabilities of an answer and a pack's own."""
    tokenizer = weave.voice(pack).tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[pack]}], add_generation_prompt=True, tokenize=False
    )
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    written = [token.id for token in reply.tokens]
    with torch.no_grad(), weave.packed_model.rows([other]):
        logits = weave.base.model(torch.tensor([prompt + written])).logits[0, len(prompt) - 1 : -1].float()
    ours = logits.log_softmax(-1).gather(1, torch.tensor(written)[:, None])[:, 0]
    theirs = torch.tensor([token.logprob for token in reply.tokens])
    return float((ours - theirs).abs().mean())
