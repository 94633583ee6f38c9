"""CKU, from start to end: find the useful neurons, freeze them, unlearn in the others, teach to refuse where asked.

[digest] Neurons of some MLP layers are scored on useful data, and while the forget loss drives the knowledge out the
gradients of the useful ones are pruned. Ours: frozen neurons are frozen bit for bit; the training ends where the
forget set is as little known as what was never taught, or before retain loses more than its budget.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillweave.artefact import write_json
from skillweave.base import Base
from skillweave.delta import Delta
from skillweave.errors import NothingLearnt, UserError
from skillweave.files.read import read_json
from skillweave.methods.cku.config import MLPS, CkuConfig
from skillweave.methods.cku.knowledge.facts import Fact, rows_of_set
from skillweave.methods.cku.knowledge.sets import Sets, read_sets
from skillweave.methods.cku.refusal import refusal_examples
from skillweave.methods.training.order import batch_order, stage_seed
from skillweave.methods.training.run import Run

if TYPE_CHECKING:
    from skillweave.methods.cku.knowledge.reading import Row
    from skillweave.methods.cku.neurons.freeze import FrozenNeurons
    from skillweave.methods.cku.neurons.mlp import MLP

_SEEN = ("forget_strength", "retain_probability", "held_out_probability", "unseen_strength")


def run(base: Base, config: CkuConfig, out_dir: Path) -> Delta:
    """Take what ``config.forget`` holds out of ``base`` and leave the rest; the result as a delta on it.

    The delta is saved in ``out_dir/"delta"``; ``base`` itself is not changed. Called again on the same folder after a
    kill it goes on, to the same weights as an unbroken run. Under ``torchrun`` the processes share the batch, and must
    all see ``out_dir``. Raises :class:`UserError` where settings or files do not fit.
    """
    from skillweave.methods.cku.neurons.localise import chosen_mlps
    from skillweave.methods.cku.neurons.mlp import find_mlps
    from skillweave.methods.training.trainer import quiet

    sets = read_sets(config.forget, config.retain, config.unseen, config.watch.held_out)
    if config.refusal is not None:  # a mistake there is to be told now, not when the unlearning is done
        refusal_examples(sets.forget, sets.retain, config.refusal, config.seed)
    mlps = chosen_mlps(find_mlps(base.model), config.localise.layers)
    if config.objective.loss == "rmu":
        steered_layer(mlps, base)  # a mistake is told before any work
    state = Run.begin("cku", base, config, sets, out_dir)
    if state.finished:
        return state.delta
    with quiet():
        work = _Unlearning.begin(state, mlps)
        facts = work.all_stages()
    return work.run.finish(facts)


@dataclass
class _Unlearning:
    """The state of one unlearning: the sets as token rows, and where in the model it takes place."""

    run: Run[CkuConfig, Sets]
    mlps: list[MLP]
    forget: list[Row]
    retain: list[Row]
    held_out: list[Row]
    unseen: list[Row]

    @classmethod
    def begin(cls, run: Run[CkuConfig, Sets], mlps: list[MLP]) -> _Unlearning:
        """Read the sets as tokens; where the MLPs are to be trained, say so in the names that training knows."""
        names = [name for mlp in mlps for name in (*mlp.ins, mlp.down)]
        if run.config.trainable == MLPS:
            of_mlps: dict[str, Any] = {"trainable": rf"^({'|'.join(map(re.escape, names))})\."}
            if "targets" not in run.config.lora.model_fields_set:
                of_mlps["lora"] = run.config.lora.model_copy(update={"targets": names})
            run = replace(run, config=run.config.model_copy(update=of_mlps))
        sets = run.data
        rows = {side: _rows(run, side, getattr(sets, side)) for side in ("forget", "retain", "held_out")}
        return cls(run, mlps, **rows, unseen=_rows(run, "unseen", sets.unseen) if sets.unseen else [])

    def all_stages(self) -> dict[str, Any]:
        """All stages in their order. Returns what became of both sets."""
        run = self.run
        if run.config.localise.freeze != "none":
            run.stage("localise", self._localise, show=("frozen", "neurons", "overlap"))
        before = run.stage("before", self._read, show=_SEEN)
        run.trained("unlearn", self._unlearn)
        if run.config.refusal is not None:
            run.trained("refusal", self._refuse)
        after = run.stage("after", self._read, show=_SEEN)
        return {"before": before, "after": after}

    # -- the stages --------------------------------------------------------------------------------------------------

    def _localise(self, folder: Path) -> dict[str, Any]:
        from skillweave.methods.cku.neurons.localise import localise

        run = self.run

        def work() -> dict[str, Any]:
            return localise(
                run.base.model, run.tokenizer.pad_token_id, self.forget, self.retain, self.mlps, run.config.localise,
                folder, run.config.seed,
            )  # fmt: skip

        return run.processes.from_first(work)

    def _read(self, folder: Path) -> dict[str, Any]:
        """What the policy knows of each set; of the forget set every row's log-probability too, in ``forget.json``.

        What was trained is read as a backbone serves it, in the base's dtype (adapters stay beside the base).
        """
        return self.run.processes.from_first(lambda: self._read_first(folder))

    def _read_first(self, folder: Path) -> dict[str, Any]:
        from skillweave.methods.cku.rounding import round_as_stored
        from skillweave.methods.training.head import install_scoring_head

        model = self.run.policy.open_to_train(self.run.config, seed=0).eval()
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

    def _unlearn(self, folder: Path) -> dict[str, Any]:
        """Train to forget, watched."""
        from skillweave.methods.cku.trainer import UnlearnTrainer, control_vector
        from skillweave.methods.cku.watch import Watch
        from skillweave.methods.training.trainer import learnt

        run, config = self.run, self.run.config
        settings, seed = config.objective, stage_seed(config.seed, folder.name)
        before = run.figures["before"]
        goal = config.watch.goal if config.watch.goal is not None else before.get("unseen_strength")
        watch = Watch(
            self._look, config.watch, start=before["held_out_probability"], goal=goal, save_every=config.save_every,
            processes=run.processes,
        )  # fmt: skip
        reference = read_json(run.folder / "before" / "forget.json")
        layer = steered_layer(self.mlps, run.base) if settings.loss == "rmu" else 0

        def make(model: Any, arguments: dict[str, Any], order: list[int]) -> Any:
            beside = batch_order([len(row["input_ids"]) for row in self.retain], config.training.batch_size,
                                 len(order) // config.training.batch_size, seed)  # fmt: skip
            rows = [
                {"forget": self.forget[index], "retain": self.retain[other], "reference": reference[index]}
                for index, other in zip(order, beside, strict=True)
            ]
            held = settings.retain_term in ("kl", "hidden")
            start = self._start() if held or settings.loss == "rmu" else None
            control = None
            if settings.loss == "rmu":
                control = control_vector(
                    start, self.forget[:64], run.tokenizer.pad_token_id, layer=layer, steering=settings.steering,
                    seed=seed, batch_size=config.training.batch_size,
                )  # fmt: skip
            return UnlearnTrainer(
                model, run.tokenizer, arguments, rows, settings, start=start if held else None, control=control,
                layer=layer, callbacks=[self._frozen(model), watch],
            )  # fmt: skip

        figures = run.train(folder, config.training, self.forget, [len(row["input_ids"]) for row in self.forget], make)
        if not learnt(figures):
            raise NothingLearnt(_NO_GRADIENT)
        if run.processes.first:
            write_json(folder / "looks.json", watch.looks)
        if not watch.kept_step:
            raise NothingLearnt(_nothing_forgotten(watch.looks, before["held_out_probability"], config))
        run.say(_ended(watch.ended, watch.kept_step, goal))
        return {**figures, "ended": watch.ended, "kept_step": watch.kept_step}

    def _refuse(self, folder: Path) -> dict[str, Any]:
        """Teach the refusal, with what must stay beside it; the frozen neurons stay frozen."""
        from skillweave.methods.training.sft import AnswerTrainer, encode, row_length

        run, config = self.run, self.run.config
        settings = config.refusal
        if settings is None:
            raise RuntimeError("a refusal is taught where it is asked for")
        examples = refusal_examples(run.data.forget, run.data.retain, settings, config.seed)
        rows = encode(run.tokenizer, examples, run.max_length)
        run.tell_too_long(folder.name, len(examples) - len(rows), len(examples), "examples")

        def make(model: Any, arguments: dict[str, Any], order: list[int]) -> Any:
            trainer = AnswerTrainer(model, run.tokenizer, arguments, rows, order)
            trainer.add_callback(self._frozen(model))
            return trainer

        figures = run.train(folder, settings, rows, [row_length(row) for row in rows], make)
        return {"examples": len(rows), "too_long": len(examples) - len(rows), **figures}

    # -- what they share ---------------------------------------------------------------------------------------------

    def _frozen(self, model: Any) -> FrozenNeurons:
        from skillweave.methods.cku.neurons.freeze import FrozenNeurons
        from skillweave.methods.cku.neurons.localise import read_neurons

        none = self.run.config.localise.freeze == "none"
        frozen = {} if none else read_neurons(self.run.folder / "localise")["frozen"]
        return FrozenNeurons(model, self.mlps, frozen)

    def _start(self) -> Any:
        return self.run.policy.open_to_train(self.run.config, seed=0).eval().requires_grad_(False)

    def _look(self, model: Any) -> dict[str, float]:
        return {
            "forget": self._reading(model, self.forget[: self.run.config.watch.examples]).means()["strength"],
            "retain": self._reading(model, self.held_out).means()["probability"],
        }

    def _reading(self, model: Any, rows: Sequence[Row]) -> Any:
        from skillweave.methods.cku.knowledge.reading import read_rows

        config = self.run.config
        return read_rows(
            model,
            rows,
            self.run.tokenizer.pad_token_id,
            batch_size=config.training.micro_batch_size or config.training.batch_size,
            bf16=config.autocast,
        )


def steered_layer(mlps: Sequence[MLP], base: Base) -> int:
    """The layer that ``rmu`` steers: the last chosen one, but never the model's last, whose output transformers gives
    after the final norm, where nothing can be as long as it should. Raises :class:`UserError` where none is left."""
    last = base.model.config.get_text_config().num_hidden_layers - 1
    below = [mlp.layer for mlp in mlps if mlp.layer < last]
    if not below:
        raise UserError(f"localise.layers: rmu steers the output of a layer below the last ({last}): add one")
    return below[-1]


def _rows(run: Run[CkuConfig, Sets], side: str, facts: Sequence[Fact]) -> list[Row]:
    called = "what is held out of the retain set" if side == "held_out" else f"the {side} set"
    rows, left_out = rows_of_set(run.tokenizer, facts, run.max_length, called)
    run.tell_too_long(run.method, left_out, len(facts), f"facts of {called}")
    return rows


_NO_GRADIENT = (
    "nothing was unlearnt: no step had a gradient, so every weight is the base's own. With sign_agreement the two "
    "gradients may agree nowhere (agreement in unlearn/history.json): set objective.sign_agreement to false; or all "
    "neurons of the chosen layers are frozen: lower localise.ratio, or choose other localise.layers"
)


def _ended(why: str, step: int, goal: float | None) -> str:
    return {
        "goal": f"step {step}: the forget set is no better known than the goal ({goal or 0:.3f})",
        "budget": f"the retain budget is spent: back to step {step}",
        "steps": f"all {step} steps are done" + ("" if goal is None else f"; the goal ({goal:.3f}) was not reached"),
    }[why]


def _nothing_forgotten(looks: list[dict[str, float]], start: float, config: CkuConfig) -> str:
    return (
        f"retain fell from {start:.3f} to {looks[0]['retain']:.3f} by step {looks[0]['step']:.0f}, more than its "
        f"budget of {config.watch.budget:.1%}: nothing was unlearnt. Lower training.learning_rate, raise objective.mu, "
        "look sooner (watch.every) or allow more (watch.budget), and begin in an empty folder"
    )
