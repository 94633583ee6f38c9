"""Specialise, from start to end: probe, warm start, rounds of sampling and DPO, probe again, take the delta.

SkillWeave, stage 1 [digest]: the base samples its own answers, a verifier splits them into good and bad, online DPO
with all parameters, one run a domain. The warm start follows the public relative GraftLLM (SFT, then DPO) [relative];
when it is needed is decided by the probe [ours]. A round's reference is the policy at the round's start [ours].

What lies in the run's folder::

    config.json            method, base, settings, versions: a run with others is refused here
    probe-before/  warm-start/  round-1/ ...  probe-after/    each stage's files; figures.json marks a finished one
    figures.json           all stages' figures together
    delta/                 the result
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from skillweave.artefact import atomic_folder, read_json, write_json
from skillweave.base import Base, open_tokenizer, prompt_ids
from skillweave.base.allocator import keep_freed_memory
from skillweave.base.generate import context_length
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.methods.registry import register
from skillweave.methods.specialise.config import SpecialiseConfig
from skillweave.methods.specialise.pairs import Answered, is_good, make_pairs, solve_rate
from skillweave.methods.training.order import batch_order
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.settings import TrainingSettings
from skillweave.progress import console
from skillweave.tasks import Entry, Task, load_task

# TRL and PEFT take seconds to import: only a run that trains pays for them, not everyone who lists the methods.


@dataclass
class _Run:
    """What all stages of one run know. ``policy`` moves on as stages finish."""

    base: Base
    config: SpecialiseConfig
    folder: Path
    task: Task
    tokenizer: Any
    processes: Processes
    policy: Any
    figures: dict[str, dict[str, Any]]

    @property
    def max_length(self) -> int:
        return min(self.config.max_length, context_length(self.base.model) or self.config.max_length)


@register("specialise", SpecialiseConfig)
def run(base: Base, config: SpecialiseConfig, out_dir: Path) -> Delta:
    """Make a specialist of ``base`` for ``config.task``; its delta is saved in ``out_dir/"delta"`` and returned.

    ``base`` is not changed: training starts from the files at ``base.path``. Called again on the same folder after a
    kill it goes on from the last checkpoint, to the same weights as an unbroken run. Under ``torchrun`` the batch is
    shared by the processes, which must all see ``out_dir``. Raises :class:`UserError` where settings do not fit.
    """
    from skillweave.methods.specialise.policy import Policy
    from skillweave.methods.training.trainer import quiet

    if base.in_memory:
        raise UserError("this base holds a delta already: specialise trains on a base as its files hold it")
    out_dir = Path(out_dir)
    processes = Processes.join(base.model.device.type)
    task = load_task(config.task)
    processes.from_first(lambda: _claim(out_dir, base, config, task))
    if processes.from_first((out_dir / "delta").is_dir):
        return Delta.from_pretrained(out_dir / "delta")
    device = processes.device(base.model.device)
    if device.type == "cpu":
        keep_freed_memory()
    state = _Run(
        base, config, out_dir, task, open_tokenizer(base.path), processes,
        Policy(base.path, base.ref, device), {},
    )  # fmt: skip
    with quiet():
        _all_stages(state)
    processes.from_first(lambda: _finish(state))
    return Delta.from_pretrained(out_dir / "delta")


def _claim(folder: Path, base: Base, config: SpecialiseConfig, task: Task) -> None:
    """Write the resolved settings, or check that the run found in the folder has the same."""
    settings = config.model_dump(mode="json")
    examples = task.key
    identity = {
        "method": "specialise",
        "base": {"ref": base.ref, "fingerprint": base.fingerprint},
        "task": examples,
        "config": settings,
    }
    path = folder / "config.json"
    if path.exists():
        found = read_json(path)
        if not (isinstance(found, dict) and {"method", "base", "config", "task"} <= set(found)):
            raise UserError(f"{path} is no run of ours, and would be replaced: choose another folder")
        if found["base"]["fingerprint"] != base.fingerprint:
            raise UserError(f"{folder} holds a run on another base ({found['base']['ref']}): choose another folder")
        other = [key for key, value in settings.items() if found["config"].get(key) != value]
        if found["task"] != examples:
            other.append("other examples in the task")
        if other or found["method"] != "specialise":
            raise UserError(
                f"{folder} holds a run with other settings ({', '.join(other) or found['method']}): "
                "choose another folder, or delete this one to begin anew"
            )
    else:
        versions = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
        write_json(path, {**identity, "versions": versions})


def _all_stages(run: _Run) -> None:
    from skillweave.methods.specialise.sample import choose_entries

    config = run.config
    entries = _short_enough(run)
    probed = choose_entries(entries, config.probe_prompts, 0, config.seed)
    before = _stage(run, "probe-before", lambda folder: _probe(run, folder, probed))["solve_rate"]

    warm = config.warm_start
    if warm.when == "always" or (warm.when == "auto" and before < warm.min_solve_rate):
        needed = warm.steps_for(len(entries)) * warm.batch_size
        chosen = choose_entries(entries, needed, 0, config.seed)
        _trained(run, "warm-start", lambda folder: _warm_start(run, folder, chosen))
    for number in range(config.rounds):
        asked = choose_entries(entries, config.prompts_per_round, number, config.seed)
        _trained(run, f"round-{number + 1}", lambda folder, asked=asked: _round(run, folder, asked))  # type: ignore[misc]
    if run.policy.trained is None:
        raise UserError(
            f"nothing was learnt: no round made a pair of a good and a bad answer (the base solves {before:.0%} of "
            "the probe). Ask harder or easier prompts, draw more samples_per_prompt, or set warm_start.when=always."
        )
    _stage(run, "probe-after", lambda folder: _probe(run, folder, probed))


def _short_enough(run: _Run) -> list[Entry]:
    """The train entries whose prompt leaves room for an answer, here and in the base's context."""
    entries = run.task.split("train")
    kept = [entry for entry in entries if len(prompt_ids(run.tokenizer, entry.prompt)) < run.max_length]
    if not kept:
        raise UserError(f"task '{run.task.name}': every train prompt has {run.max_length} tokens or more (max_length)")
    if len(kept) < len(entries) and run.processes.first:
        console.print(f"  {len(entries) - len(kept)} prompts of {run.max_length} tokens or more are left out")
    return kept


def _stage(run: _Run, name: str, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Run a stage unless its figures say it is finished; remember and show its figures."""
    mark = run.folder / name / "figures.json"
    if not run.processes.from_first(mark.exists):
        start = time.monotonic()
        figures = work(run.folder / name)
        run.processes.wait()
        if run.processes.first:
            write_json(mark, {**figures, "seconds": round(time.monotonic() - start, 1)})
        run.processes.wait()
    run.figures[name] = read_json(mark)
    if run.processes.first:
        shown = (f"{key} {value:.3g}" for key, value in run.figures[name].items() if isinstance(value, int | float))
        console.print(f"  {name}: {', '.join(shown)}", soft_wrap=True)
    return run.figures[name]


def _trained(run: _Run, name: str, work: Callable[[Path], dict[str, Any]]) -> None:
    """A stage that may move the policy on: then only its result is kept, not its checkpoints nor what it began from."""
    from skillweave.methods.training.trainer import drop_checkpoints

    figures = _stage(run, name, work)
    if figures["steps"]:
        if run.processes.first:
            drop_checkpoints(run.folder / name)
            if run.policy.trained is not None:
                shutil.rmtree(run.policy.trained, ignore_errors=True)
        run.policy = replace(run.policy, trained=run.folder / name / "policy")
        run.processes.wait()


def _probe(run: _Run, folder: Path, entries: list[Entry]) -> dict[str, Any]:
    samples = _sample(run, folder, entries)
    answers = sum(len(row.answers) for row in samples)
    return {"solve_rate": solve_rate(samples, run.config.threshold), "answers": answers}


def _sample(run: _Run, folder: Path, entries: list[Entry]) -> list[Answered]:
    from skillweave.methods.specialise.sample import sample_answers

    return sample_answers(
        lambda: (run.policy.open_to_sample(run.config), run.tokenizer),
        run.task, entries, run.config, folder, name=folder.name, processes=run.processes,
    )  # fmt: skip


def _warm_start(run: _Run, folder: Path, entries: list[Entry]) -> dict[str, Any]:
    """Supervised training on each entry's gold answer, or where it has none on a good answer of the probe."""
    from skillweave.methods.specialise import sft
    from skillweave.methods.specialise.sample import read_samples

    own: dict[str, str] = {}
    for row in read_samples(run.folder / "probe-before" / "samples.jsonl"):
        for answer, score in zip(row.answers, row.scores, strict=True):
            if is_good(score, run.config.threshold):
                own.setdefault(row.id, answer)
    known = [(entry, entry.answer if entry.answer is not None else own.get(entry.id)) for entry in entries]
    examples = [(entry.prompt, answer) for entry, answer in known if answer is not None]
    if not examples:
        raise UserError(
            f"task '{run.task.name}' has no gold answers and the base solved no prompt of the probe: there is nothing "
            "to warm up on. Set warm_start.when=never and draw more samples_per_prompt, or take a stronger base."
        )
    rows = sft.encode(run.tokenizer, examples, run.max_length)
    figures = _train(
        run, folder, run.config.warm_start, rows, [sft.row_length(row) for row in rows],
        lambda model, arguments, order: sft.AnswerTrainer(model, run.tokenizer, arguments, rows, order),
    )  # fmt: skip
    return {"examples": len(rows), "too_long": len(examples) - len(rows), **figures}


def _round(run: _Run, folder: Path, entries: list[Entry]) -> dict[str, Any]:
    """Sample from the policy, make pairs, DPO. A round without a pair trains nothing."""
    from skillweave.methods.specialise import dpo

    config = run.config
    samples = _sample(run, folder, entries)
    pairs, counted = make_pairs(
        samples,
        threshold=config.threshold,
        max_pairs_per_prompt=config.max_pairs_per_prompt,
        gold_as_chosen=config.gold_as_chosen,
        seed=config.seed,
    )
    if not pairs:
        return {**asdict(counted), "steps": 0}
    rows = dpo.encode(run.tokenizer, pairs, run.max_length)
    figures = _train(
        run, folder, config.dpo, rows, [dpo.row_length(row) for row in rows],
        lambda model, arguments, order: dpo.PairTrainer(
            model, run.tokenizer, arguments, rows, order,
            settings=config.dpo, reference=folder / "reference.json", processes=run.processes,
        ),
    )  # fmt: skip
    return {**asdict(counted), "too_long": len(pairs) - len(rows), **figures}


def _train(
    run: _Run, folder: Path, settings: TrainingSettings, rows: list[dict], lengths: list[int],
    make_trainer: Callable[[Any, dict[str, Any], list[int]], Any],
) -> dict[str, Any]:  # fmt: skip
    """Train the policy on encoded rows in ``folder``, from its newest checkpoint; the result lies in ``policy/``."""
    from skillweave.methods.specialise.policy import save_policy
    from skillweave.methods.specialise.sample import stage_seed
    from skillweave.methods.training.trainer import fit, trainer_arguments

    if not rows:
        raise UserError(
            f"{folder.name}: every example is longer than {run.max_length} tokens (max_length, or the base's context)"
        )
    config = run.config
    seed = stage_seed(config.seed, folder.name)
    steps = settings.steps_for(len(rows))
    arguments = trainer_arguments(
        settings, run.processes, folder=folder, steps=steps, seed=seed, bf16=config.bf16,
        device=run.policy.device.type, save_every=config.save_every,
        gradient_checkpointing=config.gradient_checkpointing,
    )  # fmt: skip
    model = run.policy.open_to_train(config, seed)
    trainer = make_trainer(model, arguments, batch_order(lengths, settings.batch_size, steps, seed))
    figures = fit(trainer, folder.name, run.processes)
    if run.processes.first:
        save_policy(model, folder / "policy")
    return figures


def _finish(run: _Run) -> None:
    """Write the figures and the delta, and free the disk of the trained model."""
    rates = {"before": run.figures["probe-before"]["solve_rate"], "after": run.figures["probe-after"]["solve_rate"]}
    write_json(run.folder / "figures.json", {"solve_rate": rates, "seed": run.config.seed, "stages": run.figures})
    if run.config.train == "full":
        delta = Delta.between(run.base, run.policy.trained)
    else:
        delta = Delta.from_lora(run.policy.trained, run.base)
    delta.provenance = {"method": "specialise", "task": run.task.name, "seed": run.config.seed}
    with atomic_folder(run.folder / "delta") as temporary:
        delta.save_pretrained(temporary)
    shutil.rmtree(run.policy.trained, ignore_errors=True)
