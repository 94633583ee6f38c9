"""One run of a method: its folder, its identity, and stages that are done once and remembered.

What lies in the run's folder::

    config.json         method, base, settings, versions: a run with others is refused here
    STAGE/              each stage's files; figures.json in it marks a finished one
    figures.json        all stages' figures together
    delta/              the result
"""

from __future__ import annotations

import shutil
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from pydantic import BaseModel

from skillweave.artefact import atomic_folder, write_json
from skillweave.base import Answer, Base, Checkpoint, Prompt, answer_ids, open_tokenizer, prompt_ids
from skillweave.base.allocator import keep_freed_memory
from skillweave.base.generate import context_length
from skillweave.base.precision import native_bf16
from skillweave.delta import Delta
from skillweave.errors import NothingLearnt, UserError
from skillweave.files.disk import check_room
from skillweave.files.lock import Claim, take
from skillweave.files.place import place_of
from skillweave.files.read import read_json
from skillweave.files.recover import recover, sweep
from skillweave.methods.training.order import batch_order, stage_seed
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.settings import AnswerSettings, ModelSettings, TrainingSettings
from skillweave.progress import console, say_once, share_of
from skillweave.tasks import Entry, Task
from skillweave.tasks.check import check_before

if TYPE_CHECKING:
    from skillweave.methods.training.policy import Policy

_NEARLY_ALL = 0.9
"""From this share of cut-off answers on, it is said that little can be learnt."""
_ADVICE = (
    "The history.json of each stage has its loss and gradients; steps that are too short need a higher learning_rate."
)

# TRL and PEFT take seconds to import: only a run that trains pays for them, not everyone who lists the methods.

TrainerMaker = Callable[[Any, dict[str, Any], list[int]], Any]
"""(model, arguments of the trainer's config, indices of the rows of all steps) -> a trainer."""


class Data(Protocol):
    """What a run learns from: a task, or another named content. ``key`` is a digest of all that is in it."""

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str: ...


C = TypeVar("C", bound=ModelSettings)
D = TypeVar("D", bound=Data)


@dataclass
class Run(Generic[C, D]):
    """What all stages of one run know. ``policy`` moves on as stages finish."""

    method: str
    base: Base
    config: C
    data: D
    folder: Path
    tokenizer: Any
    processes: Processes
    policy: Policy
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def begin(cls, method: str, base: Base, config: C, task: D, folder: Path) -> Run[C, D]:
        """Claim the folder for this run, or go on with the same run found in it.

        Under ``torchrun`` the processes share the run, and must all see the folder. Raises :class:`UserError` where
        the folder holds another run, or the base is not as its files hold it.
        """
        from skillweave.methods.training.policy import Policy
        from skillweave.methods.training.reporting import check_reporters

        check_reporters(config.report_to)
        if base.in_memory:
            raise UserError(f"this base holds a delta already: {method} trains on a base as its files hold it")
        folder = Path(folder)
        processes = Processes.join(base.model.device.type)
        device = processes.device(base.model.device)
        config = processes.from_first(lambda: _decided(config, folder, device))
        held: list[Claim] = []
        processes.from_first(lambda: held.append(_claim(method, folder, base, config, task)))
        if device.type == "cpu":
            keep_freed_memory()
        policy = Policy(base.path, base.ref, device)
        run = cls(method, base, config, task, folder, open_tokenizer(base.path), processes, policy)
        for claimed in held:  # the folder is this run's until it ends, with or without a result
            weakref.finalize(run, claimed.release)
        if isinstance(task, Task) and not run.finished:
            check_before(task, run.tokenizer, run.max_length)
        return run

    @property
    def finished(self) -> bool:
        """Whether the delta is there."""
        return self.processes.from_first((self.folder / "delta").is_dir)

    @property
    def delta(self) -> Delta:
        """The delta of a finished run."""
        return Delta.from_pretrained(self.folder / "delta")

    @property
    def _limit(self) -> str:
        """What :attr:`max_length` is, and what can be done about an example beyond it."""
        if self.max_length == self.config.max_length:
            return f"{self.max_length} tokens (max_length)"
        return f"{self.max_length} tokens (the base's context, which no setting raises)"

    @property
    def max_length(self) -> int:
        """The longest example in tokens: the setting, or the base's context where that is shorter."""
        return min(self.config.max_length, context_length(self.base.model) or self.config.max_length)

    def say(self, text: str) -> None:
        """One line for the person, from the first process only."""
        if self.processes.first:
            console.print(f"  {text}", soft_wrap=True)

    def tell_too_long(self, stage: str, left_out: int, total: int, what: str) -> None:
        """Say how many of ``what`` are longer than :attr:`max_length` and left out, if any are."""
        if left_out:
            self.say(
                f"{stage}: {share_of(left_out, total, what)} are longer than {self._limit} and are left out; "
                f"{'raise it or shorten them' if self.max_length == self.config.max_length else 'shorten them'}"
            )

    def tell_cut_off(self, stage: str, cut_off: int, total: int, limit: str, then: str) -> None:
        """Say how many answers were cut off at ``limit`` (``"max_new_tokens=48"``) and what ``then`` became of them."""
        if not cut_off:
            return
        mostly = " Nearly all were: so little is learnt here." if cut_off >= _NEARLY_ALL * total else ""
        self.say(
            f"{stage}: {share_of(cut_off, total, 'answers')} were cut off at {limit} (or at the base's context) and "
            f"{then}; raise {limit.partition('=')[0]}.{mostly}"
        )

    def short_enough(self: Run[Any, Task], split: str, *, answered: bool = False) -> list[Entry]:
        """The entries of a split whose prompt leaves room for an answer, or with ``answered`` for its own gold answer,
        within ``max_length`` and the base's context. Raises :class:`UserError` where there are none."""

        def fits(entry: Entry) -> bool:
            answer = len(answer_ids(self.tokenizer, entry.answer or "", entry.prompt)) if answered else 1
            return len(prompt_ids(self.tokenizer, entry.prompt)) + answer <= self.max_length

        entries = self.data.split(split)
        kept = [entry for entry in entries if fits(entry)]
        what = "prompts with their answers" if answered else "prompts"
        if not kept:
            raise UserError(
                f"task '{self.data.name}': all {split} {what} are longer than {self.max_length} tokens (max_length, or "
                "the base's context)"
            )
        self.tell_too_long(self.data.name, len(entries) - len(kept), len(entries), f"{split} {what}")
        return kept

    def held_out(self: Run[Any, Task], settings: AnswerSettings | None) -> list[tuple[Prompt, Answer]]:
        """Prompts with their answers for looks at the held-out loss: of the calibration split, never of the test split.

        Those that have an answer, at most as many as ``settings`` say; none where there are no settings.
        """
        entries = self.data.splits.get("calibration", []) if settings is not None else []
        known = [(entry.prompt, entry.answer) for entry in entries if entry.answer is not None]
        return known[: settings.held_out] if settings is not None else []

    def stage(
        self, name: str, work: Callable[[Path], dict[str, Any]], show: Collection[str] | None = None
    ) -> dict[str, Any]:
        """Run a stage unless its figures say it is finished; remember its figures and show those in ``show`` (all)."""
        mark = self.folder / name / "figures.json"
        if not self.processes.from_first(mark.exists):
            start = time.monotonic()
            figures = work(self.folder / name)
            self.processes.wait()
            if self.processes.first:
                write_json(mark, {**figures, "seconds": round(time.monotonic() - start, 1)})
            self.processes.wait()
        self.figures[name] = read_json(mark)
        shown = (
            f"{key} {value:.3g}"
            for key, value in self.figures[name].items()
            if isinstance(value, int | float) and (show is None or key in show)
        )
        self.say(f"{name}: {', '.join(shown)}")
        return self.figures[name]

    def trained(self, name: str, work: Callable[[Path], dict[str, Any]]) -> None:
        """A stage that may move the policy on: then only its result is kept, not its checkpoints nor what it began
        from. A training without a gradient in any step moves nothing."""
        from skillweave.methods.training.trainer import learnt

        figures = self.stage(name, work)
        if figures["steps"] and not learnt(figures):
            self.say(f"{name}: no step had a gradient, so nothing was learnt in this stage")
        if learnt(figures):
            self._drop_checkpoints(name)
            if self.processes.first and self.policy.trained is not None:
                shutil.rmtree(self.policy.trained, ignore_errors=True)
            self.policy = replace(self.policy, trained=self.folder / name / "policy")
            self.processes.wait()

    def train(
        self, folder: Path, settings: TrainingSettings, rows: Sequence[dict], lengths: list[int], make: TrainerMaker
    ) -> dict[str, Any]:
        """Train the policy on encoded rows in ``folder``, from its newest checkpoint; the result lies in ``policy/``.

        ``lengths`` are the tokens of each row. Returns the figures of :func:`~skillweave.methods.training.trainer.fit`,
        and ``tokens``, how many were trained on.
        """
        if not rows:
            raise UserError(
                f"{folder.name}: every example is longer than {self.max_length} tokens (max_length, or the base's "
                "context)"
            )
        steps = settings.steps_for(len(rows))
        order = batch_order(lengths, settings.batch_size, steps, stage_seed(self.config.seed, folder.name))
        figures = self.fit(folder, settings, steps, lambda model, arguments: make(model, arguments, order))
        done = order[: figures["steps"] * settings.batch_size]  # a trainer may end before all steps are done
        return {**figures, "tokens": sum(lengths[index] for index in done)}

    def fit(
        self, folder: Path, settings: TrainingSettings, steps: int, make: Callable[[Any, dict[str, Any]], Any]
    ) -> dict[str, Any]:
        """:meth:`train` with the trainer that ``make(model, arguments)`` gives, whatever it is fed with."""
        from skillweave.methods.training.policy import save_policy
        from skillweave.methods.training.trainer import fit, trainer_arguments

        config = self.config
        seed = stage_seed(config.seed, folder.name)
        arguments = trainer_arguments(
            settings, self.processes, folder=folder, steps=steps, seed=seed, bf16=config.autocast,
            device=self.policy.device.type, save_every=config.save_every,
            gradient_checkpointing=config.gradient_checkpointing,
        )  # fmt: skip
        model = self.policy.open_to_train(config, seed)
        trainer = make(model, arguments)
        figures = fit(trainer, folder.name, self.processes, config.report_to)
        # Under FSDP or DeepSpeed no process holds all of it: the parts are gathered by all together.
        whole = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if self.processes.first:
            save_policy(model, whole, folder / "policy")
        return figures

    def finish(self, facts: dict[str, Any], why_nothing: str = "no stage changed a weight") -> Delta:
        """Write the figures and the delta of the policy as it is now, and free the disk of the trained model.

        Raises :class:`NothingLearnt` where no stage moved the policy (for the reason ``why_nothing``), or where not one
        weight differs from the base's: then there is no delta, and the same run says so again.
        """
        self.processes.wait()  # none may still look for what is removed here
        self.processes.from_first(lambda: self._write(facts, why_nothing))
        return self.delta

    def _write(self, facts: dict[str, Any], why_nothing: str) -> None:
        write_json(self.folder / "figures.json", {**facts, "seed": self.config.seed, "stages": self.figures})
        if self.policy.trained is None:
            raise NothingLearnt(f"nothing was learnt: {why_nothing}. {_ADVICE}")
        delta = self.policy.delta(self.base, self.config.train)
        if not _changes_anything(delta, self.base):
            raise NothingLearnt(f"nothing was learnt: every weight is the base's own. {_ADVICE}")
        delta.provenance = {"method": self.method, "task": self.data.name, "seed": self.config.seed}
        with atomic_folder(self.folder / "delta") as temporary:
            delta.save_pretrained(temporary)
        if self.policy.trained is not None:
            shutil.rmtree(self.policy.trained, ignore_errors=True)

    def _drop_checkpoints(self, name: str) -> None:
        from skillweave.methods.training.trainer import drop_checkpoints

        if self.processes.first:
            drop_checkpoints(self.folder / name)


def _decided(config: C, folder: Path, device: torch.device) -> C:
    """The settings with ``bf16: auto`` decided: as the run found in the folder has it, else by the device."""
    if config.bf16 != "auto":
        return config
    path = folder / "config.json"
    found = read_json(path) if path.exists() else None
    begun = found.get("config", {}).get("bf16") if isinstance(found, dict) else None
    native, reason = native_bf16(device)
    chosen = begun if isinstance(begun, bool) else native
    because = reason if chosen == native else "as the run in this folder began"
    say_once(f"training computes in {'bfloat16' if chosen else 'float32'} ({because})")
    return config.model_copy(update={"bf16": chosen})


def _changes_anything(delta: Delta, base: Base) -> bool:
    """Whether the delta moves any weight of the base by more than float32 can tell of its tensor's largest."""
    return any(_changes(delta, base.checkpoint, name) for name in delta.names())


def _changes(delta: Delta, base: Checkpoint, name: str) -> bool:
    if name not in base or base.shape(name) != delta.shape(name):
        return True
    ours, theirs = base.tensor(name).float().cpu(), delta.tensor(name).float().cpu()
    moved = theirs - ours if delta.whole(name) else theirs
    if not moved.numel():
        return False
    # A weight that is zero takes up any step, however small: what the whole tensor holds is the measure.
    largest = float(ours.abs().max()) or 1.0
    return not float(moved.abs().max()) <= torch.finfo(torch.float32).eps * largest  # a NaN is a change


def _claim(method: str, folder: Path, base: Base, config: ModelSettings, task: Data) -> Claim:
    """Claim the folder and write the resolved settings, or check that the run found in it has the same."""
    held = take(place_of(folder))
    try:
        recover(held)
        sweep(folder)
        _write_settings(method, folder, base, config, task)
    except BaseException:
        held.release()
        raise
    return held


def _write_settings(method: str, folder: Path, base: Base, config: ModelSettings, task: Data) -> None:
    settings = config.model_dump(mode="json")
    identity = {
        "method": method,
        "base": {"ref": base.ref, "fingerprint": base.fingerprint},
        "task": task.key,
        "config": settings,
    }
    path = folder / "config.json"
    if path.exists():
        found = read_json(path)
        if not (isinstance(found, dict) and {"method", "base", "config", "task"} <= set(found)):
            raise UserError(f"{path} is no run of ours, and would be replaced: choose another folder")
        if _begun(folder):
            _check_same(folder, found, identity, config)
            if found["config"] == settings:
                return
    elif config.train == "full":
        whole = 4 * sum(parameter.numel() for parameter in base.model.parameters())
        check_room(folder, whole, "the trained model in float32")
    versions = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    write_json(path, {**identity, "versions": versions})


def _differing(config: BaseModel, found: Mapping[str, Any]) -> list[str]:
    """The settings that are not as a run's ``config.json`` has them. One that is missing there has its default: the run
    was begun before there was such a setting."""
    values = config.model_dump(mode="json")
    other = []
    for key, field_ in type(config).model_fields.items():
        mine = getattr(config, key)
        if key not in found:
            # `bf16: auto`, the default, has been decided since, and the run that began says nothing else.
            same = key == "bf16" or mine == field_.get_default(call_default_factory=True)
        elif isinstance(mine, BaseModel) and isinstance(found[key], dict):
            same = not _differing(mine, found[key])
        else:
            same = found[key] == values[key]
        if not same:
            other.append(key)
    return other


def _begun(folder: Path) -> bool:
    """Whether there is more than the settings: a run that ended at once, for a mistake, may begin with others."""
    return any(path.name != "config.json" and not path.name.startswith(".") for path in folder.iterdir())


def _check_same(folder: Path, found: dict[str, Any], ours: dict[str, Any], config: ModelSettings) -> None:
    """Raise :class:`UserError` unless the run in the folder is this one; ``may_change`` holds until it is finished."""
    if found["base"]["fingerprint"] != ours["base"]["fingerprint"]:
        raise UserError(f"{folder} holds a run on another base ({found['base']['ref']}): choose another folder")
    free = ModelSettings.may_change if (folder / "delta").is_dir() else config.may_change
    other = [key for key in _differing(config, config.in_current_form(found["config"])) if key not in free]
    if found["task"] != ours["task"]:
        other.append("other examples in the task")
    if other or found["method"] != ours["method"]:
        raise UserError(
            f"{folder} holds a run with other settings ({', '.join(other) or found['method']}): "
            "choose another folder, or delete this one to begin anew"
        )
