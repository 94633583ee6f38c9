"""Measure what int8 linear layers cost in quality and gain in time, on the base alone.

Claims: with outlier channels in floats, the KL divergence from float32 is below half of that of plain int8 weights and
activations; and one linear layer in int8 takes less time than in float32 and in bfloat16, from 8 rows on.

Quality is measured on the base's own greedy answers: KL of the next token in thousandths of a nat, and the share of
tokens with the same most likely token. The interval is a bootstrap over answers. Times are medians of one layer
(hidden -> intermediate) whose ways take turns; the interval is the range over the numbers of rows.

    python -m benchmarks.int8_backbone                  SmolLM2, about ten minutes on two cores
    python -m benchmarks.int8_backbone --quick          a micro model, less than a minute
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.common.record import Record, arguments, bootstrap, judged, positive, run
from skillweave.base import Base, fingerprint, open_base, prompt_ids
from skillweave.base.chat import PromptOrIds
from skillweave.base.ends import stop_tokens
from skillweave.micro import MicroShape, micro_model, micro_tokenizer
from skillweave.progress import bar
from skillweave.report import Table
from skillweave.weave import background_prompts, put_into_int8
from skillweave.weave.int8 import Int8Linear
from skillweave.weave.int8_loss import Text, next_log_probs

NAME = "int8_backbone"
ROWS = (1, 8, 32, 128, 512)
PLAIN = "int8 weights and activations"
CHOSEN = "int8, outliers (1 in 32) in floats"
INT8_WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {"outlier_share": None},
    "int8, smoothing 0.5": {"outlier_share": None, "smooth": 0.5},
    "int8, outliers (1 in 64) in floats": {"outlier_share": 64},
    CHOSEN: {},
    "int8, outliers (1 in 32) and smoothing 0.5": {"smooth": 0.5},
}


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, ["small"])
    parser.add_argument("--prompts", type=positive, default=32, help="prompts to answer (default: %(default)s)")
    parser.add_argument("--tokens", type=positive, default=48, help="most tokens of an answer (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=50, help="timed turns of a layer (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.quick:
        options.prompts, options.tokens, options.repeats = 4, 8, 3
    record = Record.begin(NAME, options, argv, seeds=[0])
    base = _micro() if options.quick else open_base("bundled:smollm2", dtype="float32")
    quality = losses(base, own_answers(base, background_prompts()[: options.prompts], options.tokens))
    ratios = np.stack([quality[CHOSEN][0], quality[PLAIN][0]], axis=1)
    low, high = bootstrap(ratios, lambda picked: picked[..., 0].mean(axis=1) / picked[..., 1].mean(axis=1))
    value = float(ratios[:, 0].mean() / ratios[:, 1].mean())
    record.claims.append(judged("KL with outliers in floats, over plain int8", value, low, high, "< 0.5"))
    for way, (kl, agreement) in quality.items():
        record.rows.append(
            {"what": way, "kl_thousandths": round(1000 * float(kl.mean()), 2), "agreement": round(agreement, 4)}
        )
    speed = layer_times(*_sizes(base.model), options.repeats)
    for rows, taken in speed.items():
        record.rows.append({"what": f"one layer, {rows} rows"} | {way: round(us, 1) for way, us in taken.items()})
    for other in ("float32", "bfloat16"):
        shares = [taken["int8"] / taken[other] for rows, taken in speed.items() if rows >= 8]
        claim = f"time of a layer in int8 over {other}, 8 to 512 rows"
        record.claims.append(judged(claim, statistics.median(shares), min(shares), max(shares), "< 1"))
    record.finish(table(record.rows), plot(record.rows))


@torch.no_grad()
def own_answers(base: Base, prompts: Sequence[PromptOrIds], max_new_tokens: int = 48) -> list[Text]:
    """The base's own greedy answer to each prompt, with the prompt before it."""
    texts: list[Text] = []
    for prompt in prompts:
        ids = torch.tensor([prompt_ids(base.tokenizer, prompt)], device=base.model.device)
        made = base.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(stop_tokens(base.model, base.tokenizer)),
            pad_token_id=base.tokenizer.pad_token_id,
        )
        texts.append((made[0].tolist(), ids.shape[1]))
    return texts


def losses(base: Base, texts: Sequence[Text]) -> dict[str, tuple[np.ndarray, float]]:
    """Way -> (mean KL from float32 over the tokens of each answer, the share of tokens with the same choice)."""
    reference = [next_log_probs(base.model, [text]) for text in texts]
    result = {}
    ways: dict[str, Callable[[], Any]] = {
        "bfloat16": lambda: copy.deepcopy(base.model).bfloat16(),
        "int8 weights, float activations": lambda: _decoded(base),
    }
    for way, settings in INT8_WAYS.items():
        ways[way] = lambda settings=settings: _rounded(base, settings).model
    with bar("losses", len(ways)) as advance:
        for way, make in ways.items():
            model = make()
            kl, same = [], []
            for text, expected in zip(texts, reference, strict=True):
                got = next_log_probs(model, [text])
                kl.append(float((expected.exp() * (expected - got)).sum(dim=-1).mean()))
                same += (expected.argmax(dim=-1) == got.argmax(dim=-1)).tolist()
            result[way] = np.array(kl), statistics.fmean(same)
            del model
            advance()
    return result


@torch.no_grad()
def layer_times(inner: int, out: int, repeats: int) -> dict[int, dict[str, float]]:
    """Rows -> way -> median microseconds of one layer of this size. The ways take turns."""
    torch.manual_seed(0)
    plain = nn.Linear(inner, out, bias=False)
    narrow = copy.deepcopy(plain).bfloat16()
    kept = torch.arange(inner // 32)
    layers = {"float32": plain, "bfloat16": narrow, "int8": Int8Linear(plain.weight, outliers=kept)}
    layers["int8, no outliers"] = Int8Linear(plain.weight)
    result = {}
    with bar("one layer in turns", len(ROWS)) as advance:
        for rows in ROWS:
            x = torch.randn(rows, inner)
            fed = {way: x.bfloat16() if way == "bfloat16" else x for way in layers}
            seconds: dict[str, list[float]] = {way: [] for way in layers}
            for repeat in range(-2, repeats):
                for way, layer in layers.items():
                    began = time.perf_counter()
                    layer(fed[way])
                    if repeat >= 0:  # the first runs warm caches and kernels
                        seconds[way].append(time.perf_counter() - began)
            result[rows] = {way: 1e6 * statistics.median(taken) for way, taken in seconds.items()}
            advance()
    return result


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A table of the losses, and below it the times of one layer."""
    header = ["what", "KL, 1/1000 nat", "same token", "float32 us", "bfloat16 us", "int8 us", "int8, no outliers us"]
    keys = ("kl_thousandths", "agreement", "float32", "bfloat16", "int8", "int8, no outliers")
    lines = []
    for row in rows:
        shown = ["" if row.get(key) is None else f"{row[key]:.4g}" for key in keys]
        if "agreement" in row:
            shown[1] = f"{100 * row['agreement']:.1f}%"
        lines.append([row["what"], *shown])
    return Table(header, lines)


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """A figure of the KL divergence of each way."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    measured = [row for row in rows if "kl_thousandths" in row]
    drawn = axes.barh([row["what"] for row in measured], [row["kl_thousandths"] for row in measured], color="#0072B2")
    axes.bar_label(drawn, padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("KL from float32, thousandths of a nat")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _micro() -> Base:
    model = micro_model(MicroShape(), 1)
    return Base(model, micro_tokenizer(), fingerprint(model), "micro", path=None)  # type: ignore[arg-type]


def _rounded(base: Base, settings: dict[str, Any]) -> Base:
    made = Base(copy.deepcopy(base.model), base.tokenizer, base.fingerprint, base.ref, base.path, files=base.files)
    return put_into_int8(made, **settings)


def _decoded(base: Base) -> Any:
    """The model with the numbers that int8 weights stand for, and float activations."""
    model = copy.deepcopy(base.model)
    for name, layer in _rounded(base, {"outlier_share": None}).model.named_modules():
        if isinstance(layer, Int8Linear):
            model.get_submodule(name).weight.data = layer.decoded()
    return model


def _sizes(model: Any) -> tuple[int, int]:
    config = model.config.get_text_config()
    return config.hidden_size, config.intermediate_size


if __name__ == "__main__":
    run(main)
