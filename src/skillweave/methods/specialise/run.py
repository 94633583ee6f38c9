"""Specialise, from start to end: probe, warm start, rounds of sampling and DPO, probe again, take the delta.

SkillWeave, stage 1 [digest]: the base samples its own answers, a verifier splits them into good and bad, online DPO
with all parameters, one run a domain. The warm start follows the public relative GraftLLM (SFT, then DPO) [relative];
when it is needed is decided by the probe [ours]. A round's reference is the policy at the round's start [ours].

The stages of the run: ``probe-before``, ``warm-start``, ``round-1``, ``round-2``, ..., ``probe-after``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from skillweave.base import Base
from skillweave.delta import Delta
from skillweave.errors import NothingLearnt, UserError
from skillweave.methods.specialise.config import SpecialiseConfig
from skillweave.methods.training.answers import Answered, choose_entries, read_samples, sample_answers
from skillweave.methods.training.pairs import Pair, cut_off, given_pairs, is_good, make_pairs, solve_rate
from skillweave.methods.training.run import Run
from skillweave.progress import share_of
from skillweave.tasks import Entry, Task, load_task, one_each_prompt


def run(base: Base, config: SpecialiseConfig, out_dir: Path) -> Delta:
    """Make a specialist of ``base`` for ``config.task``; its delta is saved in ``out_dir/"delta"`` and returned.

    ``base`` is not changed: training starts from the files at ``base.path``. Called again on the same folder after a
    kill it goes on from the last checkpoint, to the same weights as an unbroken run. Under ``torchrun`` the batch is
    shared by the processes, which must all see ``out_dir``. Raises :class:`UserError` where settings do not fit.
    """
    from skillweave.methods.training.trainer import quiet

    state = Run.begin("specialise", base, config, load_task(config.task), out_dir)
    if state.finished:
        return state.delta
    with quiet():
        rates = _all_stages(state)
    return state.finish({"solve_rate": rates})


def _all_stages(run: Run[SpecialiseConfig, Task]) -> dict[str, float]:
    config = run.config
    entries = run.short_enough("train")
    prompts = one_each_prompt(entries)
    given = _given(run, entries)
    probed = choose_entries(prompts, config.probe_prompts, 0, config.seed)
    before = run.stage("probe-before", lambda folder: _probe(run, folder, probed))["solve_rate"]

    warm = config.warm_start
    if warm.when == "always" or (warm.when == "auto" and before < warm.min_solve_rate):
        needed = warm.steps_for(len(entries)) * warm.batch_size
        chosen = choose_entries(entries, needed, 0, config.seed)
        run.trained("warm-start", lambda folder: _warm_start(run, folder, chosen))
    for number in range(config.rounds):
        asked = choose_entries(prompts, config.prompts_per_round, number, config.seed) if _samples(run, given) else []
        run.trained(f"round-{number + 1}", _round(run, asked, given))
    if run.policy.trained is None:
        raise NothingLearnt(_nothing_learnt(run, before))
    after = run.stage("probe-after", lambda folder: _probe(run, folder, probed))["solve_rate"]
    return {"before": before, "after": after}


def _given(run: Run[SpecialiseConfig, Task], entries: list[Entry]) -> list[Pair]:
    """The task's own pairs, where they are to be learnt from."""
    given = given_pairs(run.tokenizer, entries)
    if run.config.pairs in ("given", "both") and not given:
        raise UserError(
            f"pairs is {run.config.pairs}, and no train row of task '{run.data.name}' has 'chosen' and 'rejected'"
        )
    if run.config.pairs == "own" and given:
        run.say(f"pairs is own: the rejected answers of {len(given)} train rows are not used")
    return given if run.config.pairs != "own" else []


def _samples(run: Run[SpecialiseConfig, Task], given: list[Pair]) -> bool:
    """Whether a round draws answers: not where the task's pairs are all it learns from."""
    return not given or run.config.pairs == "both"


def _nothing_learnt(run: Run[SpecialiseConfig, Task], before: float) -> str:
    """Why no stage changed a weight, and what to do."""
    rounds = [figures for name, figures in run.figures.items() if name.startswith("round-")]
    answers, cut = (sum(figures[key] for figures in rounds) for key in ("answers", "cut_off"))
    if any(figures["steps"] for figures in run.figures.values() if "steps" in figures):
        return "nothing was learnt: no step of the training had a gradient. Look into history.json of each stage."
    if answers and 2 * cut >= answers:
        return (
            f"nothing was learnt: {share_of(cut, answers, 'answers')} were cut off at max_new_tokens="
            f"{run.config.max_new_tokens}, and a cut-off answer is in no pair. Raise max_new_tokens, or set "
            "warm_start.when=always so that the model first learns to end its answers."
        )
    return (
        f"nothing was learnt: no round made a pair of a good and a bad answer (the base solves {before:.0%} of "
        "the probe). Ask harder or easier prompts, draw more samples_per_prompt, or set warm_start.when=always."
    )


def _probe(run: Run[SpecialiseConfig, Task], folder: Path, entries: list[Entry]) -> dict[str, Any]:
    samples = _sample(run, folder, entries)
    answers = sum(len(row.answers) for row in samples)
    return {"solve_rate": solve_rate(samples, run.config.threshold), "answers": answers, "cut_off": cut_off(samples)}


def _sample(run: Run[SpecialiseConfig, Task], folder: Path, entries: list[Entry]) -> list[Answered]:
    config = run.config
    return sample_answers(
        lambda: run.policy.open_to_sample(config), run.tokenizer,
        run.data, entries, config, folder / "samples.jsonl", samples=config.samples_per_prompt,
        name=folder.name, seed=config.seed, processes=run.processes,
    )  # fmt: skip


def _warm_start(run: Run[SpecialiseConfig, Task], folder: Path, entries: list[Entry]) -> dict[str, Any]:
    """Supervised training on each entry's gold answer, or where it has none on a good answer of the probe."""
    from skillweave.methods.training import sft

    config = run.config
    own: dict[str, str] = {}
    for row in read_samples(run.folder / "probe-before" / "samples.jsonl"):
        for answer, score, ended in zip(row.answers, row.scores, row.ended, strict=True):
            if ended and is_good(score, config.threshold):
                own.setdefault(row.id, answer)
    known = [(entry, entry.answer if entry.answer is not None else own.get(entry.id)) for entry in entries]
    examples = [(entry.prompt, answer) for entry, answer in known if answer is not None]
    if not examples:
        raise UserError(
            f"task '{run.data.name}' has no gold answers and the base solved no prompt of the probe with a whole "
            "answer: there is nothing to warm up on. Set warm_start.when=never and draw more samples_per_prompt, or "
            "take a stronger base."
        )
    if len(examples) < len(entries):
        run.say(
            f"{folder.name}: {share_of(len(entries) - len(examples), len(entries), 'prompts')} have no known answer "
            "and are left out"
        )
    return sft.train_on_answers(run, folder, config.warm_start, examples, run.held_out(config.warm_start))


def _round(
    run: Run[SpecialiseConfig, Task], entries: list[Entry], given: list[Pair]
) -> Callable[[Path], dict[str, Any]]:
    """Sample from the policy, make pairs beside those ``given``, DPO. A round without a pair trains nothing."""
    from skillweave.methods.specialise import dpo

    config = run.config

    def work(folder: Path) -> dict[str, Any]:
        samples = _sample(run, folder, entries) if entries else []
        own, counted = make_pairs(
            samples,
            threshold=config.threshold,
            max_pairs_per_prompt=config.max_pairs_per_prompt,
            gold_as_chosen=config.gold_as_chosen,
            seed=config.seed,
        )
        pairs = [*own, *given]
        told = {**asdict(counted), "given_pairs": len(given)}
        run.tell_cut_off(
            folder.name, counted.cut_off, counted.answers, f"max_new_tokens={config.max_new_tokens}",
            "were left out of the pairs",
        )  # fmt: skip
        if not pairs:
            return {**told, "steps": 0}
        rows = dpo.encode(run.tokenizer, pairs, run.max_length)
        run.tell_too_long(folder.name, len(pairs) - len(rows), len(pairs), "pairs")
        figures = run.train(
            folder, config.dpo, rows, [dpo.row_length(row) for row in rows],
            lambda model, arguments, order: dpo.PairTrainer(
                model, run.tokenizer, arguments, rows, order,
                settings=config.dpo, reference=folder / "reference.jsonl", processes=run.processes,
            ),
        )  # fmt: skip
        return {**told, "too_long": len(pairs) - len(rows), **figures}

    return work
