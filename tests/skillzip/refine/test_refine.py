"""A refined pack is nearer to its specialist at the same bytes, never worse, and a killed refinement goes on."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.specialist import SUMS, UNSEEN, trained_specialist
from skillweave.base import Base, answer_ids, prompt_ids
from skillweave.base.safetensors_io import read_tensors
from skillweave.config import read_config
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.pack import Skillpack
from skillweave.pack.card import refinement_text
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.skillzip.refine import factors, run, teacher, train
from skillweave.skillzip.refine.config import RefineConfig
from skillweave.skillzip.steps import rounded_codes
from skillweave.weave import PackedModel, put_into_int8

FAST: dict[str, Any] = {"steps": 16, "held_out": 8, "max_new_tokens": 12, "learning_rate": 0.05, "patience": None}


@pytest.fixture(scope="module")
def made(micro_base: Path) -> tuple[Base, Delta]:
    return trained_specialist(micro_base)


def refine(made: tuple[Base, Delta], work: Path | None = None, **settings: Any) -> Skillpack:
    base, delta = made
    form = {key: settings.pop(key) for key in ("bits", "scales", "codec") if key in settings}
    config = ZipConfig(
        ratio=settings.pop("ratio", "1/16"), allow_left_out=True, refine=RefineConfig(**{**FAST, **settings}), **form
    )
    return zip_delta(delta, base, None, config, name="t", refine_on=SUMS, work=work)


@pytest.fixture(scope="module")
def finished(made: tuple[Base, Delta], tmp_path_factory: pytest.TempPathFactory) -> tuple[Skillpack, Path]:
    """A refined pack, and the folder of its work."""
    work = tmp_path_factory.mktemp("finished") / "work"
    return refine(made, work), work


def figures(pack: Skillpack) -> dict[str, Any]:
    return pack.card.codec.measured["refine"]


@torch.no_grad()
def whole_kl(specialist: Any, model: Any, tokenizer: Any) -> float:
    """The mean KL of an answer's token over prompts that nobody has seen, over the whole vocabulary, in float64."""
    total, tokens = 0.0, 0
    for prompt, answer in UNSEEN:
        before, after = prompt_ids(tokenizer, prompt), answer_ids(tokenizer, answer)
        ids = torch.tensor([before + after])
        ours, theirs = (m(ids).logits[0, len(before) - 1 : -1].double().log_softmax(-1) for m in (specialist, model))
        total, tokens = total + float((ours.exp() * (ours - theirs)).sum()), tokens + len(after)
    return total / tokens


def served_kl(specialist: Any, base: Base, *packs: Skillpack) -> list[float]:
    """:func:`whole_kl` of the base with each pack, as the pack is served."""
    packed, found = PackedModel(base.model), []
    for number, pack in enumerate(packs):
        packed.add(packed.prepare(str(number), pack))
        with packed.every_row(str(number)):
            found.append(whole_kl(specialist, base.model, base.tokenizer))
    return found


@pytest.mark.parametrize(
    "form", [{}, {"bits": 4, "scales": "row"}, {"bits": 8, "scales": "row"}, {"codec": "bitdelta"}]
)
def test_it_comes_nearer_to_the_specialist_at_the_same_bytes(made: tuple[Base, Delta], form: dict[str, Any]) -> None:
    base, delta = made
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    ratio = "1/8" if form else "1/16"
    slower = {"steps": 32} if form else {"steps": 64, "learning_rate": 0.02}
    pack = refine(made, ratio=ratio, **form, **slower)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in base.model.parameters())
    plain = zip_delta(delta, base, None, ZipConfig(ratio=ratio, allow_left_out=True, **form), name="t")
    assert pack.nbytes <= pack.card.bytes.bf16_delta * (1 / 8 if form else 1 / 16)
    assert pack.card.bytes.total == pack.nbytes
    assert pack.card.codec.settings["refine"]["steps"] == slower["steps"]
    gained = figures(pack)
    assert gained["refined"]
    most = 0.5 if "bits" in form else 0.8  # with fitted widths it starts nearer, and signs have one scale a matrix
    assert gained["kl_after"] < most * gained["kl_before"]

    # As it is served, with integers throughout, on prompts outside of the refinement, over the whole vocabulary.
    specialist = delta.apply(base).model
    distances = served_kl(specialist, base, plain, pack)
    assert distances[1] < 0.9 * distances[0]


def test_the_measured_kl_is_that_of_the_pack(made: tuple[Base, Delta], finished: tuple[Skillpack, Path]) -> None:
    """The figures on the card, from the stored codes alone: the unzipped pack against the stored distributions."""
    base, delta = made
    pack, work = finished
    start = Skillpack.from_pretrained(work / "pack")
    assert pack.specs == start.specs
    assert pack.card.entries == start.card.entries
    rows = teacher.teacher_rows(lambda: delta.apply(base), SUMS, RefineConfig(**FAST), work)
    random.Random(0).shuffle(rows)
    for one, key in ((start, "kl_before"), (pack, "kl_after")):
        model = one.unzip().apply(base).model
        total = 0.0
        for row in rows[:8]:
            with torch.no_grad():
                q = model(torch.tensor([row.ids])).logits[0, row.prompt - 1 : -1].softmax(-1)
            for at in range(row.tokens):
                p, others = row.logs[at].exp(), torch.ones(q.shape[1], dtype=torch.bool)
                others[row.top[at].long()] = False
                chosen, rest = q[at][row.top[at].long()], q[at][others].sum()
                total += float((p * (p / chosen).log()).sum() + row.rest[at].exp() * (row.rest[at] - rest.log()))
        assert figures(pack)[key] == pytest.approx(total / sum(row.tokens for row in rows[:8]), rel=2e-3)


def test_it_is_never_worse_than_before(made: tuple[Base, Delta], tmp_path: Path) -> None:
    pack = refine(made, tmp_path, learning_rate=1.0, steps=4, batch_size=1, ratio="1/2")
    assert not figures(pack)["refined"]
    assert figures(pack)["kl_after"] == figures(pack)["kl_before"]
    start = Skillpack.from_pretrained(tmp_path / "pack")
    assert all(torch.equal(start.tensors[key], tensor) for key, tensor in pack.tensors.items())


def test_codes_that_grow_stay_within_the_limit(made: tuple[Base, Delta], monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors that move far take more bits, so the steps grow; without that, the pack would take too many bytes."""
    monkeypatch.setattr(train, "divergence", lambda *_: next(falling))
    falling = (train.Divergence(9.0, 1 / n) for n in range(1, 99))
    pack = refine(made, learning_rate=0.6, steps=8)
    assert figures(pack)["best_step"] == 8
    assert pack.nbytes <= pack.card.bytes.bf16_delta / 16
    assert pack.nbytes > 0.95 * pack.card.bytes.bf16_delta / 16
    monkeypatch.setattr(run, "coarseness", lambda *_: 1.0)
    falling = (train.Divergence(9.0, 1 / n) for n in range(1, 99))
    assert refine(made, learning_rate=0.6, steps=8).nbytes > pack.card.bytes.bf16_delta / 16


def test_on_a_base_in_int8_it_comes_nearer_as_it_is_served(made: tuple[Base, Delta], tmp_path: Path) -> None:
    base, delta = made
    modules = dict(base.model.named_modules())
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    pack = refine(made, tmp_path, backbone="int8", steps=64, learning_rate=0.02)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    assert all(module is modules[name] for name, module in base.model.named_modules())
    assert figures(pack)["backbone"] == pack.card.codec.settings["refine"]["backbone"] == "int8"
    assert "with the base's linear layers in int8" in str(refinement_text(figures(pack)))
    assert figures(pack)["kl_after"] < 0.8 * figures(pack)["kl_before"]
    assert pack.nbytes <= pack.card.bytes.bf16_delta / 16

    start, specialist = Skillpack.from_pretrained(tmp_path / "pack"), delta.apply(base).model
    rounded = put_into_int8(replace(base, model=copy.deepcopy(base.model)))
    for served in (rounded, base):  # it can be served on the base in floats, too
        distances = served_kl(specialist, served, start, pack)
        assert distances[1] < 0.9 * distances[0]

    with pytest.raises(UserError, match=r"are in int8, .* without backbone int8 .refine.backbone=int8 refines"):
        refine((rounded, delta), backbone="int8")


def test_the_form_of_the_base_is_checked_and_left_out_where_it_is_not_set() -> None:
    assert "backbone" not in ZipConfig(refine=RefineConfig()).model_dump(mode="json")["refine"]
    assert ZipConfig(refine=RefineConfig(backbone="dtype")).model_dump()["refine"]["backbone"] == "dtype"
    with pytest.raises(UserError, match="backbone"):
        read_config(ZipConfig, {"refine": {"backbone": "int4"}})


def test_it_stops_early_and_keeps_the_best_step(made: tuple[Base, Delta], monkeypatch: pytest.MonkeyPatch) -> None:
    # The total variation distance decides, whatever the KL does.
    values = iter([(2.0, 0.5), (7.0, 0.3), (1.0, 0.6), (1.0, 0.35), (1.0, 0.1)])
    monkeypatch.setattr(train, "divergence", lambda *_: train.Divergence(*next(values)))
    gained = figures(refine(made, patience=2))
    wanted = {"kl_before": 2.0, "kl_after": 7.0, "tv_before": 0.5, "tv_after": 0.3}
    assert gained == {**gained, "refined": True, "steps": 12, "best_step": 4, **wanted}


def test_it_goes_back_to_the_best_step_with_half_the_rate_after_a_measurement_that_is_no_better(
    made: tuple[Base, Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, back = train._back_to_best, []

    def spy(progress: train.Progress) -> None:
        moved = any(not torch.equal(progress.factors[key], best) for key, best in progress.best.items())
        real(progress)
        same = all(torch.equal(progress.factors[key], best) for key, best in progress.best.items())
        still = not any(moment.any() for moment in progress.first.values())
        back.append((progress.step, progress.damping, moved, same, still))

    values = iter([0.5, 0.3, 0.6, 0.3, 0.1])
    monkeypatch.setattr(train, "divergence", lambda *_: train.Divergence(1.0, next(values)))
    monkeypatch.setattr(train, "_back_to_best", spy)
    assert figures(refine(made))["best_step"] == 16
    assert back == [(8, 0.5, True, True, True), (12, 0.25, True, True, True)]


def kill_after(calls: int, real: Callable[..., Any]) -> Callable[..., Any]:
    def killed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    return killed


@pytest.mark.parametrize("backbone", [None, "int8"])
def test_a_killed_refinement_goes_on_and_ends_the_same(
    made: tuple[Base, Delta],
    finished: tuple[Skillpack, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backbone: str | None,
) -> None:
    whole, work = finished if backbone is None else (refine(made, tmp_path / "0", backbone=backbone), tmp_path / "0")
    # Killed between two answers of the specialist, then in step 8 (the last checkpoint is of step 4), then never.
    for module, name, calls in ((teacher, "_answered", 1), (train, "_backward", 7)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, name, kill_after(calls, getattr(module, name)))
            refine(made, tmp_path / "1", backbone=backbone)
    monkeypatch.setattr(run, "open_base", None)  # the specialist is not needed again
    monkeypatch.setattr("skillweave.skillzip.zip.zip_once", None)  # and neither is the codec
    resumed = refine(made, tmp_path / "1", backbone=backbone)
    wanted, got = (read_tensors(folder / train.CHECKPOINT) for folder in (work, tmp_path / "1"))
    assert wanted["losses"].numel() == 16
    assert all(torch.equal(got[key], tensor) for key, tensor in wanted.items())
    assert resumed.digest == whole.digest
    assert resumed.card.codec == whole.card.codec


def test_work_of_another_refinement_is_not_used(
    made: tuple[Base, Delta], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refine(made, tmp_path / "work", steps=1)
    pack = refine(made, tmp_path / "work", steps=2)
    assert "holds the work of another zip" in " ".join(capsys.readouterr().err.split())
    assert figures(pack)["steps"] == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds something that is not the work of a zip"):
        refine(made, tmp_path / "mine")


def test_given_answers_are_taken(made: tuple[Base, Delta], tmp_path: Path) -> None:
    refine(made, tmp_path, answers="given", steps=1)
    base, delta = made
    rows = teacher.teacher_rows(lambda: delta.apply(base), SUMS, RefineConfig(answers="given"), tmp_path)
    assert [row.ids[row.prompt :] for row in rows] == [answer_ids(base.tokenizer, answer) for _, answer in SUMS]


def test_what_is_left_out_is_said(made: tuple[Base, Delta], capsys: pytest.CaptureFixture[str]) -> None:
    base, delta = made
    config = ZipConfig(ratio="1/16", allow_left_out=True, refine=RefineConfig(steps=1, prompts=5, max_new_tokens=2))
    zip_delta(delta, base, None, config, name="t", refine_on=[("x" * 300, None), *((p, None) for p, _ in SUMS)])
    said = " ".join(capsys.readouterr().err.split())
    assert "36 of 41 prompts (88%) are not used for the refinement" in said
    assert "1 of 5 prompts for the refinement (20%) fill the base's context" in said
    assert "4 of 4 answers of the specialist (100%) are cut off at max_new_tokens=2" in said
    assert "only 2 prompts are held out, not 48" in said


@pytest.mark.parametrize(
    ("examples", "settings", "message"),
    [
        (None, {}, "there are none: name a task with --task, or give zip_delta"),
        ([("hello", None)], {}, "at least 2 calibration prompts, and there is 1"),
        ([("hello", "a"), ("you", None)], {"answers": "given"}, "1 of 2 prompts .50%. have no answer"),
        ([("x" * 300, None), ("y" * 300, None)], {}, "no prompt for the refinement fits"),
    ],
)
def test_mistakes(made: tuple[Base, Delta], examples: Any, settings: dict[str, Any], message: str) -> None:
    base, delta = made
    config = ZipConfig(ratio="1/16", allow_left_out=True, refine=RefineConfig(**settings))
    with pytest.raises(UserError, match=message):
        zip_delta(delta, base, None, config, name="t", refine_on=examples)


def test_factors_begin_anywhere_in_the_range_that_rounds_to_their_codes() -> None:
    codes = torch.tensor([0.0, 1.0, -1.0, 2.0, -127.0]).repeat(4000)
    places = factors.spread(codes, torch.Generator().manual_seed(0))
    assert torch.equal(rounded_codes(places, torch.ones(1)), codes)
    for code, low, high in ((0.0, -0.6, 0.6), (1.0, 0.6, 1.6), (-1.0, -1.6, -0.6), (2.0, 1.6, 2.6)):
        found = places[codes == code]
        assert low < found.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < found.max() < high
        assert float(found.mean()) == pytest.approx((low + high) / 2, abs=0.02)
    assert factors.spread(codes[:0], torch.Generator()).shape == (0,)


def test_a_direction_whose_step_is_zero_begins_at_zero() -> None:
    start = {"layer.A": torch.tensor([[1.0, 0.0], [-2.0, 0.0]])}
    progress = train._begun(start, {"layer.A": torch.tensor([1.0, 0.0])}, seed=0)
    assert progress.factors["layer.A"][:, 1].tolist() == [0.0, 0.0]
    assert rounded_codes(progress.factors["layer.A"][:, 0], torch.ones(1)).tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    ("given", "pack_bytes", "steps"), [(None, 1000, 150), (None, 1001, 100), (None, 0, 150), (7, 0, 7), (7, 1001, 7)]
)
def test_a_small_pack_takes_more_steps_unless_the_settings_say_how_many(given, pack_bytes, steps):
    assert RefineConfig(steps=given).steps_for(pack_bytes, 512_000) == steps
