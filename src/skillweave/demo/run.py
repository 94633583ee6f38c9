"""Build the bundled ``weave.yaml``, then answer six mixed prompts in one batch with the base and with the weave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

from skillweave.base import Sampling
from skillweave.base.open import as_device
from skillweave.base.precision import native_bf16
from skillweave.demo.estimate import Estimate, product_seconds
from skillweave.pipeline import WeaveConfig, build, read_weave_config
from skillweave.tasks import load_task
from skillweave.weave import Weave

PER_SKILL = 2
"""Prompts from each skill's test split in the mixed batch: with three skills it has six."""

STEP_SECONDS = {
    "json_calls/score-base": 6.5,
    "json_calls/delta": 51.7,
    "json_calls/score-specialist": 12.4,
    "json_calls/pack": 128.2,
    "reverse_words/score-base": 7.0,
    "reverse_words/delta": 52.5,
    "reverse_words/score-specialist": 5.8,
    "reverse_words/pack": 81.1,
    "sort_numbers/score-base": 7.3,
    "sort_numbers/delta": 60.0,
    "sort_numbers/score-specialist": 8.1,
    "sort_numbers/pack": 115.0,
    "weave/router": 12.4,
    "weave/woven": 0.1,
    "json_calls/score-pack": 7.9,
    "reverse_words/score-pack": 3.3,
    "sort_numbers/score-pack": 5.1,
    "json_calls/score-routed": 12.1,
    "reverse_words/score-routed": 5.2,
    "sort_numbers/score-routed": 7.0,
    "weave/confusion": 1.2,
    "weave/speed": 20.0,
}
"""Step -> its seconds when `make demo` ran on two CPU cores with bfloat16 instructions (AMD EPYC), in order.

That of `sort_numbers/pack` is from a run beside other work, in proportion to `delta`.
"""

PRODUCT_SECONDS = 0.0021
"""The result of :func:`product_seconds` on that machine, in bfloat16."""


@dataclass(frozen=True)
class MixedAnswer:
    """One prompt of the mixed batch, the pack that the router chose, and both answers."""

    prompt: str
    route: str
    base: str
    weave: str


def demo_config(overrides: Sequence[str] = ()) -> WeaveConfig:
    """The settings of the bundled ``weave.yaml``, with ``key.sub=value`` overrides."""
    with as_file(files("skillweave.demo") / "weave.yaml") as path:
        return read_weave_config(str(path), list(overrides))


def build_demo(out: Path, overrides: Sequence[str] = (), *, command: str) -> dict[str, Any]:
    """Build the demo's weave in ``out`` and return its report. Steps that are done there already are kept.

    Before each step, the time that is left is printed.
    """
    config = demo_config(overrides)
    device = as_device(config.device)
    arithmetic = torch.bfloat16 if native_bf16(device)[0] else torch.float32
    estimate = Estimate(STEP_SECONDS, product_seconds(arithmetic, device) / PRODUCT_SECONDS)
    return build(config, out, command=command, before_step=estimate.show)


def mixed_answers(folder: Path, overrides: Sequence[str] = ()) -> list[MixedAnswer]:
    """The answers of the base and of the weave to one batch: the first test prompts of all skills, interleaved."""
    config = demo_config(overrides)
    weave = Weave.from_pretrained(folder, device=config.device)
    by_skill = [load_task(skill.task).split("test")[:PER_SKILL] for skill in config.skills.values()]
    prompts = [entry.prompt for turn in zip(*by_skill, strict=True) for entry in turn]
    sampling = Sampling(max_new_tokens=config.score.max_new_tokens)
    plain = weave.generate(prompts, [None] * len(prompts), sampling)
    routed = weave.generate(prompts, ["auto"] * len(prompts), sampling)
    return [
        MixedAnswer(str(prompt), reply.pack or "base", before.text, reply.text)
        for prompt, before, reply in zip(prompts, plain, routed, strict=True)
    ]
