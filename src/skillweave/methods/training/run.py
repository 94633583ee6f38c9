"""One run of a method: stages that are done once, and the policy that they hand on.

The folder of a run contains::

    config.json         method, base, settings, versions; a different run is refused here (run_folder.py)
    STAGE/              the files of each stage; figures.json in it marks a finished stage
    figures.json        the figures of all stages
    delta/              the result
"""

from __future__ import annotations

import shutil
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from skillweave.artefact import atomic_folder, write_json
from skillweave.base import Answer, Base, Prompt, answer_ids, open_tokenizer, prompt_ids
from skillweave.base.allocator import keep_freed_memory
from skillweave.base.sizes import context_length
from skillweave.delta import Delta
from skillweave.errors import NothingLearnt, UserError
from skillweave.files.lock import Claim
from skillweave.files.read import read_object
from skillweave.methods.training.order import batch_order, stage_seed
from skillweave.methods.training.policy import Policy, changes_any_weight, save_policy
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.reporting import check_reporters
from skillweave.methods.training.run_folder import Data, claim_folder, decide_bf16
from skillweave.methods.training.settings import AnswerSettings, ModelSettings, TrainingSettings
from skillweave.methods.training.trainer import drop_checkpoints, fit, learnt, trainer_arguments
from skillweave.progress import console, share_of
from skillweave.tasks import Entry, Task
from skillweave.tasks.check import check_before

_NEARLY_ALL = 0.9
"""If at least this share of the answers is cut off, the user is told that little can be learnt."""
_ADVICE = (
    "Read the loss and the gradients in the history.json of each stage; if the steps are too small, raise "
    "learning_rate."
)

TrainerMaker = Callable[[Any, dict[str, Any], list[int]], Any]
"""(model, arguments of the trainer's config, indices of the rows of all steps) -> a trainer."""

C = TypeVar("C", bound=ModelSettings)
D = TypeVar("D", bound=Data)


@dataclass
class Run(Generic[C, D]):
    """The state that all stages of a run share. ``policy`` is replaced whenever a stage has trained it."""

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
    def begin(cls, method: str, base: Base, config: C, data: D, folder: Path) -> Run[C, D]:
        """Claim the folder for this run, or resume the same run found in it.

        Under ``torchrun`` all processes take part in the run and must see the folder. Raises :class:`UserError` if the
        folder holds another run, or if the base in memory differs from its files.
        """
        check_reporters(config.report_to)
        if base.in_memory:
            raise UserError(
                f"this base has a delta added in memory, and {method} trains from the base's files: open the base "
                "again, without the delta"
            )
        folder = Path(folder)
        processes = Processes.join(base.model.device.type)
        device = processes.device(base.model.device)
        config = processes.from_first(lambda: decide_bf16(config, folder, device))
        claims: list[Claim] = []  # only the first process has one
        processes.from_first(lambda: claims.append(claim_folder(method, folder, base, config, data)))
        if device.type == "cpu":
            keep_freed_memory()
        policy = Policy(base.path, base.ref, device)
        run = cls(method, base, config, data, folder, open_tokenizer(base.path), processes, policy)
        for claim in claims:  # the folder belongs to this run until the object is gone, with or without a result
            weakref.finalize(run, claim.release)
        if isinstance(data, Task) and not run.finished:
            check_before(data, run.tokenizer, run.max_length)
        return run

    @property
    def finished(self) -> bool:
        """Whether the run has written its delta."""
        return self.processes.from_first((self.folder / "delta").is_dir)

    @property
    def delta(self) -> Delta:
        """The delta of a finished run."""
        return Delta.from_pretrained(self.folder / "delta")

    # -- what fits ---------------------------------------------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """The longest example in tokens: the setting, or the base's context if that is shorter."""
        return min(self.config.max_length, context_length(self.base.model) or self.config.max_length)

    def short_enough(self: Run[Any, Task], split: str, *, answered: bool = False) -> list[Entry]:
        """The entries of a split that fit within :attr:`max_length`, and one line for the user about the others.

        An entry fits if its prompt leaves room for at least one token; with ``answered``, for its own gold answer.
        Raises :class:`UserError` if no entry fits.
        """

        def fits(entry: Entry) -> bool:
            answer = len(answer_ids(self.tokenizer, entry.answer or "", entry.prompt)) if answered else 1
            return len(prompt_ids(self.tokenizer, entry.prompt)) + answer <= self.max_length

        entries = self.data.split(split)
        short = [entry for entry in entries if fits(entry)]
        what = "prompts with their answers" if answered else "prompts"
        if not short:
            raise UserError(
                f"task '{self.data.name}': all {split} {what} are longer than {self.max_length} tokens (max_length, or "
                "the base's context): shorten them, or raise max_length up to the base's context"
            )
        self.tell_too_long(self.data.name, len(entries) - len(short), len(entries), f"{split} {what}")
        return short

    def held_out(self: Run[Any, Task], settings: AnswerSettings | None) -> list[tuple[Prompt, Answer]]:
        """Prompts and answers for the held-out loss, from the calibration split, never from the test split.

        At most ``settings.held_out`` of the entries that have an answer; none if ``settings`` is None.
        """
        if settings is None:
            return []
        entries = self.data.splits.get("calibration", [])
        answered = [(entry.prompt, entry.answer) for entry in entries if entry.answer is not None]
        return answered[: settings.held_out]

    # -- what the user is told ---------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print one line for the user, from the first process only."""
        if self.processes.first:
            console.print(f"  {text}", soft_wrap=True)

    def tell_too_long(self, stage: str, left_out: int, total: int, what: str) -> None:
        """Say how many of ``what`` are longer than :attr:`max_length` and were left out; nothing if none are."""
        if not left_out:
            return
        if self.max_length == self.config.max_length:
            limit, advice = f"{self.max_length} tokens (max_length)", "raise it or shorten them"
        else:
            limit, advice = f"{self.max_length} tokens (the base's context, which no setting raises)", "shorten them"
        self.say(f"{stage}: {share_of(left_out, total, what)} are longer than {limit} and are left out; {advice}")

    def tell_cut_off(self, stage: str, cut_off: int, total: int, limit: str, then: str) -> None:
        """Say how many answers were cut off; nothing if none were.

        - ``limit``: the setting that cut them off, with its value, such as ``"max_new_tokens=48"``.
        - ``then``: what was done with them, such as ``"were left out of the pairs"``.
        """
        if not cut_off:
            return
        little = " Nearly all answers were cut off, so little is learnt here." if cut_off >= _NEARLY_ALL * total else ""
        self.say(
            f"{stage}: {share_of(cut_off, total, 'answers')} were cut off at {limit} (or at the base's context) and "
            f"{then}; raise {limit.partition('=')[0]}.{little}"
        )

    # -- stages ------------------------------------------------------------------------------------------------------

    def stage(
        self, name: str, work: Callable[[Path], dict[str, Any]], show: Collection[str] | None = None
    ) -> dict[str, Any]:
        """Return the figures of a stage, after running ``work(folder)`` if the stage is not finished yet.

        The figures are stored in the folder of the stage, and the numbers among them are printed: those named in
        ``show``, or all.
        """
        figures_file = self.folder / name / "figures.json"
        if not self.processes.from_first(figures_file.exists):
            start = time.monotonic()
            figures = work(self.folder / name)
            self.processes.wait()
            if self.processes.first:
                write_json(figures_file, {**figures, "seconds": round(time.monotonic() - start, 1)})
            self.processes.wait()
        start_again = f"Delete {self.folder} to start the run again"
        self.figures[name] = read_object(figures_file, {"seconds": (int, float)}, start_again)
        shown = (
            f"{key} {value:.3g}"
            for key, value in self.figures[name].items()
            if isinstance(value, int | float) and (show is None or key in show)
        )
        self.say(f"{name}: {', '.join(shown)}")
        return self.figures[name]

    def trained(self, name: str, work: Callable[[Path], dict[str, Any]]) -> None:
        """Run a stage that trains, and make its result the new policy.

        The checkpoints of the stage and the policy that it started from are deleted. If no step of the training had a
        gradient, the policy stays as it was.
        """
        figures = self.stage(name, work)
        if figures["steps"] and not learnt(figures):
            self.say(f"{name}: no step had a gradient, so nothing was learnt in this stage")
        if learnt(figures):
            if self.processes.first:
                drop_checkpoints(self.folder / name)
                if self.policy.trained is not None:
                    shutil.rmtree(self.policy.trained, ignore_errors=True)
            self.policy = replace(self.policy, trained=self.folder / name / "policy")
            self.processes.wait()

    def train(
        self, folder: Path, settings: TrainingSettings, rows: Sequence[Any], lengths: list[int], make: TrainerMaker
    ) -> dict[str, Any]:
        """Train the policy on encoded rows in ``folder``, from its newest checkpoint, and write ``folder/"policy"``.

        ``lengths`` are the tokens of each row. Returns the figures of :func:`~skillweave.methods.training.trainer.fit`
        and ``tokens``, the number of tokens that were trained on. Raises :class:`UserError` if there are no rows.
        """
        if not rows:
            raise UserError(
                f"{folder.name}: every example is longer than {self.max_length} tokens (max_length, or the base's "
                "context): shorten them, or raise max_length up to the base's context"
            )
        steps = settings.steps_for(len(rows))
        order = batch_order(lengths, settings.batch_size, steps, stage_seed(self.config.seed, folder.name))
        figures = self.fit(folder, settings, steps, lambda model, arguments: make(model, arguments, order))
        used = order[: figures["steps"] * settings.batch_size]  # a trainer may stop before the last step
        return {**figures, "tokens": sum(lengths[index] for index in used)}

    def fit(
        self, folder: Path, settings: TrainingSettings, steps: int, make: Callable[[Any, dict[str, Any]], Any]
    ) -> dict[str, Any]:
        """:meth:`train` with a trainer that brings its own data: ``make(model, arguments)`` returns it."""
        config = self.config
        seed = stage_seed(config.seed, folder.name)
        arguments = trainer_arguments(
            settings,
            self.processes,
            folder=folder,
            steps=steps,
            seed=seed,
            bf16=config.autocast,
            device=self.policy.device.type,
            save_every=config.save_every,
            gradient_checkpointing=config.gradient_checkpointing,
        )
        model = self.policy.open_to_train(config, seed)
        trainer = make(model, arguments)
        figures = fit(trainer, folder.name, self.processes, config.report_to)
        # Under FSDP or DeepSpeed no process has all of the model: together they gather the parts.
        state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if self.processes.first:
            save_policy(model, state_dict, folder / "policy")
        return figures

    # -- the result --------------------------------------------------------------------------------------------------

    def finish(self, facts: dict[str, Any], why_nothing: str = "no stage changed a weight") -> Delta:
        """Write the figures and the delta of the current policy, and delete the trained model.

        Raises :class:`NothingLearnt` if no stage trained the policy (the message gives ``why_nothing``), or if every
        weight equals the base's. There is no delta then, and running again raises the same error.
        """
        self.processes.wait()  # no process may still read what is deleted here
        self.processes.from_first(lambda: self._write_result(facts, why_nothing))
        return self.delta

    def _write_result(self, facts: dict[str, Any], why_nothing: str) -> None:
        write_json(self.folder / "figures.json", {**facts, "seed": self.config.seed, "stages": self.figures})
        if self.policy.trained is None:
            raise NothingLearnt(f"nothing was learnt: {why_nothing}. {_ADVICE}")
        delta = self.policy.delta(self.base, self.config.train)
        if not changes_any_weight(delta, self.base):
            raise NothingLearnt(f"nothing was learnt: every weight is the base's own. {_ADVICE}")
        delta.provenance = {"method": self.method, "task": self.data.name, "seed": self.config.seed}
        with atomic_folder(self.folder / "delta") as temporary:
            delta.save_pretrained(temporary)
        shutil.rmtree(self.policy.trained, ignore_errors=True)
