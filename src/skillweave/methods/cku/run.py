"""CKU from start to end: find the useful neurons, freeze them, unlearn in the others, then train a refusal if wanted.

[digest] The neurons of some MLP layers are scored on useful data. While the forget loss removes the knowledge, the
gradients of the useful neurons are pruned.

[ours] Frozen neurons stay the same bit for bit. The training ends when the forget set is no better known than facts
that were never taught, or before retain loses more than its budget. Two options try to make the forgetting last: common
representations are collapsed before each forget step, and the result is distilled into noised weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from skillweave.artefact import write_json
from skillweave.base import Base
from skillweave.base.sizes import layer_count
from skillweave.delta import Delta
from skillweave.errors import NothingLearnt, UserError
from skillweave.files.read import read_json
from skillweave.methods.cku.collapse import Collapse, fit_common, read_common, write_common
from skillweave.methods.cku.config import MLPS, CkuConfig
from skillweave.methods.cku.knowledge.facts import Fact, FactRow, UnlearningSets, read_sets, rows_of_set
from skillweave.methods.cku.knowledge.reading import Reading, read_rows
from skillweave.methods.cku.neurons.freeze import FrozenNeurons, frozen_rows
from skillweave.methods.cku.neurons.localise import chosen_mlps, localise, padded_batches, read_neurons
from skillweave.methods.cku.neurons.mlp import MLP, find_mlps
from skillweave.methods.cku.refusal import refusal_examples
from skillweave.methods.cku.robust import DistilTrainer, Recovered, add_noise
from skillweave.methods.cku.rounding import round_as_stored
from skillweave.methods.cku.trainer import UnlearnTrainer, control_vector
from skillweave.methods.cku.watch import Watch
from skillweave.methods.training.head import install_scoring_head
from skillweave.methods.training.order import batch_order, stage_seed
from skillweave.methods.training.run import Run
from skillweave.methods.training.sft import AnswerTrainer, encode, row_length
from skillweave.methods.training.trainer import learnt, quiet
from skillweave.progress import bar

_SHOWN = ("forget_strength", "retain_probability", "held_out_probability", "unseen_strength")
_EVALUATIONS = "looks.json"
"""The file of the evaluations; readers of earlier runs know it by this name."""


def run(base: Base, config: CkuConfig, out_dir: Path) -> Delta:
    """Unlearn the facts of ``config.forget`` and return the result as a delta on ``base``, which is not changed.

    - The delta is saved in ``out_dir/"delta"``.
    - If the run is killed and called again on the same folder, it resumes and ends in the same weights.
    - Under ``torchrun`` the processes share the batch; all of them must see ``out_dir``.

    Raises :class:`UserError` if settings or files do not fit.
    """
    # Mistakes are reported before any work is done.
    sets = read_sets(config.forget, config.retain, config.unseen, config.watch.held_out)
    if config.refusal is not None:
        refusal_examples(sets.forget, sets.retain, config.refusal, config.seed)
    mlps = chosen_mlps(find_mlps(base.model), config.localise.layers)
    if config.objective.loss == "rmu":
        steered_layer(mlps, base)
    state = Run.begin("cku", base, config, sets, out_dir)
    if state.finished:
        return state.delta
    with quiet():
        facts = _Unlearning.begin(state, mlps).all_stages()
    return state.finish(facts)


@dataclass
class _Unlearning:
    """The state of one unlearning: its run, the MLPs in which it takes place, and the sets as rows of tokens."""

    run: Run[CkuConfig, UnlearningSets]
    mlps: list[MLP]
    forget: list[FactRow]
    retain: list[FactRow]
    held_out: list[FactRow]
    unseen: list[FactRow]

    @classmethod
    def begin(cls, run: Run[CkuConfig, UnlearningSets], mlps: list[MLP]) -> _Unlearning:
        """Tokenise the sets; if the MLPs are to be trained, put their names into the settings of the run.

        The run's ``config.json``, which identifies it, is written already and still says ``mlps``.
        """
        if run.config.trainable == MLPS:
            run.config = _training_mlps(run.config, mlps)
        sets = run.data
        return cls(
            run=run,
            mlps=mlps,
            forget=_rows(run, sets.forget, "the forget set"),
            retain=_rows(run, sets.retain, "the retain set"),
            held_out=_rows(run, sets.held_out, "the held-out part of the retain set"),
            unseen=_rows(run, sets.unseen, "the unseen set") if sets.unseen else [],
        )

    def all_stages(self) -> dict[str, Any]:
        """Run all stages in order. Returns the figures of both sets before and after."""
        run = self.run
        if run.config.localise.freeze != "none":
            run.stage("localise", self._localise, show=("frozen", "neurons", "overlap"))
        before = run.stage("before", self._read, show=_SHOWN)
        if run.config.collapse is not None:
            run.stage("collapse", self._fit_common)
        run.trained("unlearn", self._unlearn)
        if run.config.robust is not None:
            run.trained("robust", self._distil)
        if run.config.refusal is not None:
            run.trained("refusal", self._refuse)
        after = run.stage("after", self._read, show=_SHOWN)
        return {"before": before, "after": after}

    # -- the stages --------------------------------------------------------------------------------------------------

    def _localise(self, folder: Path) -> dict[str, Any]:
        """Score the neurons and choose which ones are frozen."""
        run, settings = self.run, self.run.config.localise
        model, pad, seed = run.base.model, run.tokenizer.pad_token_id, run.config.seed
        return run.processes.from_first(
            lambda: localise(model, pad, self.forget, self.retain, self.mlps, settings, folder, seed)
        )

    def _read(self, folder: Path) -> dict[str, Any]:
        """Return how well the policy knows each set; ``forget.json`` gets the log-probability of every forget row.

        A trained policy is read as a backbone serves it, in the base's dtype (adapters are kept beside the base).
        """
        return self.run.processes.from_first(lambda: self._read_sets(folder))

    def _read_sets(self, folder: Path) -> dict[str, Any]:
        model = self._policy_model()
        if self.run.policy.trained is not None and self.run.config.train == "full":
            round_as_stored(model, self.run.base.checkpoint)
        install_scoring_head(model)
        figures: dict[str, Any] = {}
        for side in ("forget", "retain", "held_out", "unseen"):
            rows = getattr(self, side)
            if rows:
                reading = self._reading(model, rows)
                figures |= {f"{side}_{key}": value for key, value in reading.means().items()}
                if side == "forget":
                    write_json(folder / "forget.json", reading.log_prob)
        return figures

    def _fit_common(self, folder: Path) -> dict[str, Any]:
        """Find what the activations and output gradients of both sets have in common."""
        return self.run.processes.from_first(lambda: self._write_common(folder))

    def _write_common(self, folder: Path) -> dict[str, Any]:
        settings, pad = self.run.config.collapse, self.run.tokenizer.pad_token_id
        if settings is None:
            raise RuntimeError("the stage collapse runs only if its settings are given")
        model = self._policy_model()
        rows = [*self.retain[: settings.examples], *self.forget[: settings.examples]]
        batches = list(padded_batches(rows, pad, self.run.config.training.batch_size))
        with bar("collapse", len(batches)) as advance:
            common = fit_common(
                model,
                batches,
                activations=settings.activations,
                gradients=settings.gradients,
                frozen=frozen_rows(model, self.mlps, self._frozen_neurons()),
                advance=advance,
            )
        write_common(folder, common)
        return {"layers": len(common), "examples": len(rows)}

    def _unlearn(self, folder: Path) -> dict[str, Any]:
        """Train to forget until the watch ends it."""
        run, config = self.run, self.run.config
        before = run.figures["before"]
        goal = config.watch.goal if config.watch.goal is not None else before.get("unseen_strength")
        watch = Watch(
            lambda model: self._evaluate(model, self.held_out),
            config.watch,
            start=before["held_out_probability"],
            goal=goal,
            save_every=config.save_every,
            processes=run.processes,
        )
        figures = run.train(
            folder,
            config.training,
            self.forget,
            [row_length(row) for row in self.forget],
            lambda model, arguments, order: self._unlearn_trainer(folder, model, arguments, order, watch),
        )
        if not learnt(figures):
            raise NothingLearnt(_NO_GRADIENT)
        if run.processes.first:
            write_json(folder / _EVALUATIONS, watch.evaluations)
        if not watch.kept_step:
            raise NothingLearnt(_nothing_forgotten(watch.evaluations[0], before["held_out_probability"], config))
        run.say(_why_ended(watch.ended, watch.kept_step, goal))
        return {**figures, "ended": watch.ended, "kept_step": watch.kept_step}

    def _unlearn_trainer(
        self, folder: Path, model: Any, arguments: dict[str, Any], order: list[int], watch: Watch
    ) -> UnlearnTrainer:
        """The trainer of the unlearning. ``order``: the forget row of each example, which also gets a retain row."""
        run, config = self.run, self.run.config
        settings, batch_size, seed = config.objective, config.training.batch_size, stage_seed(config.seed, folder.name)
        retain_order = batch_order([row_length(row) for row in self.retain], batch_size, len(order) // batch_size, seed)
        log_probs_before = read_json(run.folder / "before" / "forget.json")
        rows = [
            {"forget": self.forget[index], "retain": self.retain[other], "reference": log_probs_before[index]}
            for index, other in zip(order, retain_order, strict=True)
        ]

        steered = settings.loss == "rmu"
        compared = settings.retain_term in ("kl", "hidden")  # these terms compare with the reference model at each step
        layer = steered_layer(self.mlps, run.base) if steered else 0
        reference_model = self._policy_model().requires_grad_(False) if compared or steered else None
        control = None
        if steered:
            control = control_vector(
                reference_model,
                self.forget[:64],
                run.tokenizer.pad_token_id,
                layer=layer,
                steering=settings.steering,
                seed=seed,
                batch_size=batch_size,
            )
        common = read_common(run.folder / "collapse") if config.collapse is not None else None
        return UnlearnTrainer(
            model,
            run.tokenizer,
            arguments,
            rows,
            settings,
            reference_model=reference_model if compared else None,
            control=control,
            layer=layer,
            callbacks=[self._frozen(model), watch],
            collapse=Collapse(model, common) if common is not None else None,
        )

    def _distil(self, folder: Path) -> dict[str, Any]:
        """Add noise to the unlearnt weights and distil from the unlearnt model until the retain answers are back."""
        run, settings = self.run, self.run.config.robust
        if settings is None:
            raise RuntimeError("the stage robust runs only if its settings are given")
        teacher = self._policy_model().requires_grad_(False)
        install_scoring_head(teacher)
        rows = [*self.retain, *self.forget]
        known = run.processes.from_first(lambda: self._reading(teacher, self.retain).means()["probability"])
        watch = Recovered(
            lambda model: self._evaluate(model, self.retain),
            every=settings.every,
            goal=settings.recovery * known,
            processes=run.processes,
        )

        def make(model: Any, arguments: dict[str, Any], order: list[int]) -> Any:
            frozen = self._frozen(model)  # before the noise: it keeps what it sees
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            add_noise(trained, settings, stage_seed(run.config.seed, folder.name))
            frozen.restore()
            install_scoring_head(model)
            return DistilTrainer(
                model,
                run.tokenizer,
                arguments,
                [rows[index] for index in order],
                teacher=teacher,
                callbacks=[frozen, watch],
            )

        wider = run.config.model_copy(update={"trainable": settings.trainable or run.config.trainable})
        lengths = [row_length(row) for row in rows]
        figures = replace(run, config=wider).train(folder, settings, rows, lengths, make)
        if run.processes.first:
            write_json(folder / _EVALUATIONS, watch.evaluations)
        last = watch.evaluations[-1]
        run.say(
            f"step {last['step']:.0f}: the retain answers are {'' if watch.recovered else 'not '}as likely as to the "
            f"unlearnt model again ({last['retain']:.3f} of {known:.3f})"
        )
        return {**figures, "examples": len(rows), "recovered": last["retain"] / known}

    def _refuse(self, folder: Path) -> dict[str, Any]:
        """Train the refusal, mixed with retain examples; the frozen neurons stay frozen."""
        run, settings = self.run, self.run.config.refusal
        if settings is None:
            raise RuntimeError("the stage refusal runs only if its settings are given")
        examples = refusal_examples(run.data.forget, run.data.retain, settings, run.config.seed)
        rows = encode(run.tokenizer, examples, run.max_length)
        run.tell_too_long(folder.name, len(examples) - len(rows), len(examples), "examples")

        def make(model: Any, arguments: dict[str, Any], order: list[int]) -> Any:
            trainer = AnswerTrainer(model, run.tokenizer, arguments, rows, order)
            trainer.add_callback(self._frozen(model))
            return trainer

        figures = run.train(folder, settings, rows, [row_length(row) for row in rows], make)
        return {"examples": len(rows), "too_long": len(examples) - len(rows), **figures}

    # -- shared by the stages ----------------------------------------------------------------------------------------

    def _frozen_neurons(self) -> dict[int, Tensor]:
        """The frozen neurons, (neurons,) bool by layer; an empty mapping if none are frozen."""
        nothing = self.run.config.localise.freeze == "none"
        return {} if nothing else read_neurons(self.run.folder / "localise")["frozen"]

    def _frozen(self, model: Any) -> FrozenNeurons:
        return FrozenNeurons(model, self.mlps, self._frozen_neurons())

    def _policy_model(self) -> Any:
        """A new copy of the policy as the last finished stage left it."""
        return self.run.policy.open_to_train(self.run.config, seed=0).eval()

    def _evaluate(self, model: Any, retain: Sequence[FactRow]) -> dict[str, float]:
        """The figures that decide when a training ends; ``retain`` are the answers that must stay known."""
        return {
            "forget": self._reading(model, self.forget[: self.run.config.watch.examples]).means()["strength"],
            "retain": self._reading(model, retain).means()["probability"],
        }

    def _reading(self, model: Any, rows: Sequence[FactRow]) -> Reading:
        training = self.run.config.training
        return read_rows(
            model,
            rows,
            self.run.tokenizer.pad_token_id,
            batch_size=training.micro_batch_size or training.batch_size,
            bf16=self.run.config.autocast,
        )


def steered_layer(mlps: Sequence[MLP], base: Base) -> int:
    """Return the layer that ``rmu`` steers: the last chosen one that is not the model's last.

    transformers returns the output of the last layer after the final norm, which fixes its length, so it cannot be
    steered to a vector of another length. Raises :class:`UserError` if no other layer is chosen.
    """
    last = layer_count(base.model) - 1
    below = [mlp.layer for mlp in mlps if mlp.layer < last]
    if not below:
        raise UserError(
            f"localise.layers: rmu steers the output of a layer below the last one ({last}): add such a layer"
        )
    return below[-1]


def _training_mlps(config: CkuConfig, mlps: Sequence[MLP]) -> CkuConfig:
    """The settings with the MLPs' modules in ``trainable`` and, unless the user set them, in ``lora.targets``."""
    names = [name for mlp in mlps for name in (*mlp.ins, mlp.down)]
    changes: dict[str, Any] = {"trainable": rf"^({'|'.join(map(re.escape, names))})\."}
    if "targets" not in config.lora.model_fields_set:
        changes["lora"] = config.lora.model_copy(update={"targets": names})
    return config.model_copy(update=changes)


def _rows(run: Run[CkuConfig, UnlearningSets], facts: Sequence[Fact], called: str) -> list[FactRow]:
    rows, left_out = rows_of_set(run.tokenizer, facts, run.max_length, called)
    run.tell_too_long(run.method, left_out, len(facts), f"facts of {called}")
    return rows


_NO_GRADIENT = (
    "nothing was unlearnt: no step had a gradient, so every weight is the base's own. Possible reasons: with "
    "sign_agreement the two gradients agree nowhere (see agreement in unlearn/history.json): set "
    "objective.sign_agreement to false; or all neurons of the chosen layers are frozen: lower localise.ratio, or "
    "choose other localise.layers"
)


def _why_ended(why: str, step: int, goal: float | None) -> str:
    return {
        "goal": f"step {step}: the forget set is no better known than the goal ({goal or 0:.3f})",
        "budget": f"the retain budget is spent: the weights of step {step} are restored",
        "steps": f"all {step} steps are done" + ("" if goal is None else f"; the goal ({goal:.3f}) was not reached"),
    }[why]


def _nothing_forgotten(first: dict[str, float], start: float, config: CkuConfig) -> str:
    return (
        f"nothing was unlearnt: retain fell from {start:.3f} to {first['retain']:.3f} by step {first['step']:.0f}, "
        f"more than its budget of {config.watch.budget:.1%}. Lower training.learning_rate, raise objective.mu, "
        "evaluate sooner (watch.every) or allow more (watch.budget), and start in an empty folder"
    )
