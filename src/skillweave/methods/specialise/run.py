"""Specialise from start to end: probe, warm start, rounds of sampling and DPO, probe again, save the delta.

SkillWeave, stage 1 [digest]: the base samples its own answers, a verifier splits them into good and bad ones, and
online DPO trains all parameters on them, in one run per domain. The warm start follows the related public method
GraftLLM (SFT, then DPO) [relative]; the probe decides whether it is needed [ours]. The reference of a round is the
policy at its start [ours].

The stages of the run are ``probe-before``, ``warm-start``, ``round-1``, ``round-2``, ..., ``probe-after``.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

from skillweave.base import Base
from skillweave.delta import Delta
from skillweave.errors import NothingLearnt, UserError
from skillweave.methods.specialise.config import SpecialiseConfig
from skillweave.methods.specialise.dpo import PairTrainer, encode, row_length
from skillweave.methods.training.answers import choose_entries, read_samples, sample_policy
from skillweave.methods.training.preferences import Pair, cut_off, given_pairs, is_good, make_pairs, solve_rate
from skillweave.methods.training.run import Run
from skillweave.methods.training.sft import train_on_answers
from skillweave.methods.training.trainer import quiet
from skillweave.progress import share_of
from skillweave.tasks import Entry, Task, load_task, one_each_prompt


def run(base: Base, config: SpecialiseConfig, out_dir: Path) -> Delta:
    """Train a specialist of ``base`` for ``config.task``; returns its delta, which is saved in ``out_dir/"delta"``.

    - ``base`` is not changed: the training starts from the files at ``base.path``.
    - Called again on the same folder after a kill, it resumes from the last checkpoint, and ends with the same weights
      as an unbroken run.
    - Under ``torchrun`` the processes share each batch; all of them must see ``out_dir``.
    - Raises :class:`UserError` if settings do not fit, and :class:`NothingLearnt` if no weight changed.
    """
    state = Run.begin("specialise", base, config, load_task(config.task), out_dir)
    if state.finished:
        return state.delta
    with quiet():
        rates = _all_stages(state)
    return state.finish({"solve_rate": rates})


def _all_stages(run: Run[SpecialiseConfig, Task]) -> dict[str, float]:
    """Run all stages in their order; returns the solve rate before and after."""
    config = run.config
    entries = run.short_enough("train")
    prompts = one_each_prompt(entries)
    task_pairs = _task_pairs(run, entries)
    probe_entries = choose_entries(prompts, config.probe_prompts, 0, config.seed)
    before = run.stage("probe-before", lambda folder: _probe(run, folder, probe_entries))["solve_rate"]

    warm = config.warm_start
    if warm.when == "always" or (warm.when == "auto" and before < warm.min_solve_rate):
        needed = warm.steps_for(len(entries)) * warm.batch_size
        chosen = choose_entries(entries, needed, 0, config.seed)
        run.trained("warm-start", lambda folder: _warm_start(run, folder, chosen))
    for number in range(config.rounds):
        # With `pairs: given` the task's own pairs are all that a round learns from, so it samples no answers.
        sampled = not task_pairs or config.pairs == "both"
        round_entries = choose_entries(prompts, config.prompts_per_round, number, config.seed) if sampled else []
        run.trained(f"round-{number + 1}", functools.partial(_round, run, round_entries, task_pairs))
    if run.policy.trained is None:
        raise NothingLearnt(_nothing_learnt(run, before))
    after = run.stage("probe-after", lambda folder: _probe(run, folder, probe_entries))["solve_rate"]
    return {"before": before, "after": after}


def _task_pairs(run: Run[SpecialiseConfig, Task], entries: list[Entry]) -> list[Pair]:
    """The task's own pairs, if the settings say that they are learnt from; else an empty list.

    Raises :class:`UserError` if they are asked for and the task has none.
    """
    pairs = given_pairs(run.tokenizer, entries)
    if run.config.pairs in ("given", "both") and not pairs:
        raise UserError(
            f"pairs is {run.config.pairs}, and no train row of task '{run.data.name}' has 'chosen' and 'rejected': add "
            "them to the task's file, or set pairs to own"
        )
    if run.config.pairs == "own" and pairs:
        run.say(f"pairs is own: the rejected answers of {len(pairs)} train rows are not used")
    return pairs if run.config.pairs != "own" else []


def _nothing_learnt(run: Run[SpecialiseConfig, Task], before: float) -> str:
    """Why no stage changed a weight, and what to do."""
    rounds = [figures for name, figures in run.figures.items() if name.startswith("round-")]
    answers, cut = (sum(figures[key] for figures in rounds) for key in ("answers", "cut_off"))
    if any(figures["steps"] for figures in run.figures.values() if "steps" in figures):
        return "nothing was learnt: no step of the training had a gradient. Read the history.json of each stage."
    if answers and 2 * cut >= answers:
        return (
            f"nothing was learnt: {share_of(cut, answers, 'answers')} were cut off at max_new_tokens="
            f"{run.config.max_new_tokens}, and a cut-off answer is never part of a pair. Raise max_new_tokens, or set "
            "warm_start.when=always so that the model first learns to end its answers."
        )
    return (
        f"nothing was learnt: no round made a pair of a good and a bad answer (the base solves {before:.0%} of "
        "the probe). Use harder or easier prompts, raise samples_per_prompt, or set warm_start.when=always."
    )


def _probe(run: Run[SpecialiseConfig, Task], folder: Path, entries: list[Entry]) -> dict[str, Any]:
    """How well the policy solves some train prompts now."""
    samples = sample_policy(run, folder, entries)
    answers = sum(len(row.answers) for row in samples)
    return {"solve_rate": solve_rate(samples, run.config.threshold), "answers": answers, "cut_off": cut_off(samples)}


def _warm_start(run: Run[SpecialiseConfig, Task], folder: Path, entries: list[Entry]) -> dict[str, Any]:
    """Supervised training on each entry's gold answer, or, if it has none, on a good answer of the probe."""
    config = run.config
    own: dict[str, str] = {}
    for row in read_samples(run.folder / "probe-before" / "samples.jsonl"):
        for answer, score, ended in zip(row.answers, row.scores, row.ended, strict=True):
            if ended and is_good(score, config.threshold):
                own.setdefault(row.id, answer)
    answers = [entry.answer if entry.answer is not None else own.get(entry.id) for entry in entries]
    examples = [(entry.prompt, answer) for entry, answer in zip(entries, answers, strict=True) if answer is not None]
    if not examples:
        raise UserError(
            f"task '{run.data.name}' has no gold answers, and the base solved no prompt of the probe with a "
            "complete answer: there is nothing to warm up on. Set warm_start.when=never and raise samples_per_prompt, "
            "or use a stronger base."
        )
    if len(examples) < len(entries):
        run.say(
            f"{folder.name}: {share_of(len(entries) - len(examples), len(entries), 'prompts')} have no known answer "
            "and are left out"
        )
    return train_on_answers(run, folder, config.warm_start, examples, run.held_out(config.warm_start))


def _round(
    run: Run[SpecialiseConfig, Task], entries: list[Entry], task_pairs: list[Pair], folder: Path
) -> dict[str, Any]:
    """Sample answers for ``entries``, make pairs of them, add the ``task_pairs``, and train on all of them with DPO.

    A round without a pair trains nothing.
    """
    config = run.config
    samples = sample_policy(run, folder, entries) if entries else []
    own, counts = make_pairs(
        samples,
        threshold=config.threshold,
        max_pairs_per_prompt=config.max_pairs_per_prompt,
        gold_as_chosen=config.gold_as_chosen,
        seed=config.seed,
    )
    pairs = [*own, *task_pairs]
    figures = {**asdict(counts), "given_pairs": len(task_pairs)}
    run.tell_cut_off(
        folder.name,
        counts.cut_off,
        counts.answers,
        f"max_new_tokens={config.max_new_tokens}",
        "were left out of the pairs",
    )
    if not pairs:
        return {**figures, "steps": 0}
    rows = encode(run.tokenizer, pairs, run.max_length)
    run.tell_too_long(folder.name, len(pairs) - len(rows), len(pairs), "pairs")
    trained = run.train(
        folder,
        config.dpo,
        rows,
        [row_length(row) for row in rows],
        lambda model, arguments, order: PairTrainer(
            model,
            run.tokenizer,
            arguments,
            rows,
            order,
            settings=config.dpo,
            reference=folder / "reference.jsonl",
            processes=run.processes,
        ),
    )
    return {**figures, "too_long": len(pairs) - len(rows), **trained}
