"""TPAW from start to end: rounds of self-play against a team of past selves, with supervised data alone.

[digest] In each round the newest player answers the data's prompts. The policy starts from that player and learns to
prefer the data's answers to those of the last three rounds, against the last three players at once. Then it joins the
team. Ours: faulty pairs are left out and counted, and the round that is kept is chosen on prompts of the task's
calibration split, never of the test split.

The stages of the run are ``start`` (if ``start`` or ``sft`` is set), ``held-out-0``, ``round-1``, ``held-out-1``,
``round-2``, ... The folder also has ``players/`` (see :class:`~skillweave.methods.tpaw.team.Team`) and ``scores/``. A
killed run resumes in the middle of each stage.
"""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skillweave.base import Base
from skillweave.delta import Delta
from skillweave.errors import NothingLearnt, UserError
from skillweave.methods.tpaw.config import FAULTS, TpawConfig
from skillweave.methods.tpaw.player_evaluation import PlayerEvaluator
from skillweave.methods.tpaw.rows import RowMaker
from skillweave.methods.tpaw.team import Team
from skillweave.methods.tpaw.trainer import TeamTrainer, objective
from skillweave.methods.training.answers import choose_entries, mean_score, sample_policy
from skillweave.methods.training.run import Run
from skillweave.methods.training.settings import AnswerSettings, TrainingSettings
from skillweave.methods.training.sft import train_on_answers
from skillweave.methods.training.trainer import drop_checkpoints, learnt, quiet
from skillweave.tasks import Entry, Task, load_task

_ROUND_FIGURES = (
    "generated_score",
    "generations",
    "kept",
    "pairs",
    "players",
    "steps",
    "loss_last",
    "margin",
    "seconds",
)
_HELD_OUT_FIGURES = ("score", "log_prob", "tokens", "kl_to_start")


def run(base: Base, config: TpawConfig, out_dir: Path) -> Delta:
    """Align ``base`` with the answers of ``config.task`` by self-play; returns the delta of the round that is kept.

    - The delta is saved in ``out_dir/"delta"``. It is a delta on ``base``, so it includes the supervised training and
      the ``start`` delta, if there were any. ``base`` itself is not changed.
    - Called again on the same folder after a kill, it resumes, and ends with the same weights as an unbroken run.
    - Under ``torchrun`` the processes share generation, scoring and each batch; all of them must see ``out_dir``.
    - Raises :class:`UserError` if settings do not fit, and :class:`NothingLearnt` if there is nothing to keep.
    """
    state = Run.begin("tpaw", base, config, load_task(config.task), out_dir)
    if state.finished:
        return state.delta
    with quiet():
        facts = _SelfPlay.begin(state).play()
    delta = state.finish(facts)
    if state.processes.first:
        shutil.rmtree(state.folder / "players", ignore_errors=True)
    return delta


@dataclass
class _SelfPlay:
    """The state of the self-play: the team, the makers of its rows and figures, and the training data."""

    run: Run[TpawConfig, Task]
    team: Team
    evaluator: PlayerEvaluator
    rows: RowMaker
    entries: list[Entry]

    @classmethod
    def begin(cls, run: Run[TpawConfig, Task]) -> _SelfPlay:
        """Read the data, and make player 0: the base, the ``start`` delta, or either after supervised training."""
        config = run.config
        for split in ("train", "calibration"):
            run.data.pairs(split)  # raises an error if an entry has no answer
        entries = run.short_enough("train")
        rejected = sum("rejected" in entry.metadata for entry in entries)
        if rejected:
            run.say(
                f"the rejected answers of {rejected} train rows are not used: tpaw compares with its own generations"
            )
        held_out = run.short_enough("calibration", answered=True)[: config.held_out]
        team = Team(run)
        play = cls(run, team, PlayerEvaluator(run, team, held_out), RowMaker(run, team), entries)
        if config.start is not None or config.sft is not None:
            run.stage("start", play._make_start)
        return play

    def _make_start(self, folder: Path) -> dict[str, Any]:
        """Make player 0, if it is not the base itself."""
        run, config = self.run, self.run.config
        if config.start is not None:
            run.policy = replace(run.policy, trained=_copy_of_start(run, config.start))
        if config.sft is None:
            self.team.join(0)
            return {"steps": 0}
        figures = self._train_on_answers(self.entries, config.sft, folder)
        self._join_team(0, folder)
        return figures

    def play(self) -> dict[str, Any]:
        """Play and evaluate all rounds, and set the run's policy to the player that is kept.

        Returns the figures that the round was chosen by. Raises :class:`NothingLearnt` if that player is the base.
        """
        run, config = self.run, self.run.config
        scores = [self._evaluate(0)]
        best = 0
        for number in range(1, config.rounds + 1):
            figures = run.stage(f"round-{number}", functools.partial(self._round, number), show=_ROUND_FIGURES)
            if not learnt(figures):
                why = "no step of the training had a gradient" if figures["steps"] else "no pair is left to learn from"
                run.say(f"{why}: the self-play ends here")
                break
            scores.append(self._evaluate(number))
            if scores[number] > scores[best]:
                best = number
            # A resumed run passes here again and must keep the players of later rounds, which already exist.
            later = range(number + 1, config.rounds + 1)
            self.team.dismiss(stay={0, best, *self._players(number + 1), *later})
            if config.patience is not None and number - best >= config.patience:
                run.say(f"no better round since round {best}: the self-play ends here")
                break
        kept = best if config.keep == "best" else len(scores) - 1
        run.policy = self.team.policy(kept)
        if run.policy.trained is None:  # only player 0 can be the base itself
            raise NothingLearnt(self._nothing_to_keep(scores))
        run.say(
            f"kept: round {kept} of {len(scores) - 1}"
            if kept
            else f"kept: the start, because no round was better{_hint(scores)}"
        )
        return {"kept_round": kept, f"held_out_{config.judge_by}": scores}

    def _nothing_to_keep(self, scores: list[float]) -> str:
        """Why the run has no result, and what to do; ``scores`` are those of all players."""
        if len(scores) == 1:
            figures = self.run.figures["round-1"]
            if figures["steps"]:
                return (
                    "nothing was learnt: no step of round 1 had a gradient; read round-1/history.json, and raise "
                    "training.learning_rate or lower lam"
                )
            counts = ", ".join(f"{name} {figures[name]}" for name in ("generations", *FAULTS, "too_long", "kept"))
            return (
                f"nothing was learnt: round 1 made no pair to learn from ({counts}): generate at a higher temperature, "
                "raise max_new_tokens or max_length, or remove faults from drop so that more pairs are used"
            )
        return (
            f"no round was better than the base it began from (held-out {self.run.config.judge_by}: "
            f"{', '.join(f'{score:.3g}' for score in scores)}): there is nothing to keep{_hint(scores)}. To get the "
            "last round anyway, run `skillweave tpaw` on the same folder with keep=last, which repeats no work; or try "
            "another learning_rate in another folder"
        )

    def _players(self, number: int) -> list[int]:
        """The team of round ``number``, the newest player first."""
        oldest = max(0, number - self.run.config.players)
        return list(range(number - 1, oldest - 1, -1))

    def _evaluate(self, number: int) -> float:
        """Evaluate a player on the held-out prompts, and return the figure that rounds are chosen by."""
        others = sorted({0, *self._players(number)}) if number else []
        figures = self.run.stage(
            f"held-out-{number}", lambda _: self.evaluator.figures(number, others), show=_HELD_OUT_FIGURES
        )
        self.team.close()
        return figures[self.run.config.judge_by]

    # -- a round -----------------------------------------------------------------------------------------------------

    def _round(self, number: int, folder: Path) -> dict[str, Any]:
        """Train the newest player for one round; if it learnt something, the result joins the team."""
        config = self.run.config
        self.run.policy = self.team.policy(number - 1)
        entries = choose_entries(self.entries, config.prompts_per_round or len(self.entries), number - 1, config.seed)
        if config.loss == "sft":
            figures = self._train_on_answers(entries, config.training, folder)
        else:
            figures = self._train_against_team(number, entries, folder)
        if learnt(figures):
            self._join_team(number, folder)
        return {**figures, "team_bytes": self.team.nbytes}

    def _train_on_answers(self, entries: list[Entry], settings: TrainingSettings, folder: Path) -> dict[str, Any]:
        """Supervised training on the data's answers."""
        examples = [(entry.prompt, entry.answer) for entry in entries if entry.answer is not None]
        held_out = self.run.held_out(settings) if isinstance(settings, AnswerSettings) else []
        return train_on_answers(self.run, folder, settings, examples, held_out)

    def _train_against_team(self, number: int, entries: list[Entry], folder: Path) -> dict[str, Any]:
        """Generate, leave out faulty pairs, score the pairs with the team, and train."""
        run, config = self.run, self.run.config
        samples = sample_policy(run, folder, entries)
        players = self._players(number)
        rows = self.rows.of_round(number, players)
        self.team.close()
        figures: dict[str, Any] = {
            "generated_score": mean_score(samples),
            **self.rows.counts(number),
            "pairs": len(rows),
            "players": len(players),
            "steps": 0,
        }
        run.tell_cut_off(
            folder.name,
            figures["truncated"],
            sum(len(row.answers) for row in samples),
            f"max_new_tokens={config.max_new_tokens}",
            "were left out of the pairs",
        )
        run.tell_too_long(folder.name, figures["too_long"], figures["too_long"] + figures["kept"], "pairs")
        if not rows:
            return figures
        trained = run.train(
            folder,
            config.training,
            rows,
            [row.tokens for row in rows],
            lambda model, arguments, order: TeamTrainer(
                model, run.tokenizer, arguments, rows, order, objective(config)
            ),
        )
        return {**figures, **trained}

    def _join_team(self, number: int, folder: Path) -> None:
        """Make the policy that was trained in ``folder`` player ``number``, and delete its checkpoints."""
        self.run.policy = replace(self.run.policy, trained=folder / "policy")
        self.team.join(number)
        if self.run.processes.first:
            drop_checkpoints(folder)


def _hint(scores: list[float]) -> str:
    """Advice for the case that the verifier gave all rounds the same score; empty otherwise."""
    if len(set(scores)) > 1:
        return ""
    return " (all had the same score: if the answers are free text that no verifier can score, set judge_by=log_prob)"


def _copy_of_start(run: Run[TpawConfig, Task], folder: Path) -> Path:
    """The run's own copy of the ``start`` delta. Raises :class:`UserError` if it does not fit the run."""
    try:
        delta = Delta.from_pretrained(folder)
        delta.check_base(run.base.fingerprint, run.base.ref, run.base.model.config)
    except UserError as error:
        raise UserError(f"start: {error}") from error
    if run.config.train == "lora" and delta.kind != "lora":
        raise UserError(f"start: {folder} is a full delta, and train is lora: set train to full, or start from a LoRA")
    copy = run.folder / "start" / "policy"  # where a supervised training would put its own, and replace this one
    if run.processes.first:
        delta.save_pretrained(copy)
    run.processes.wait()
    return copy
