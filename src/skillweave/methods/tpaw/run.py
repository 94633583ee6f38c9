"""TPAW, from start to end: rounds of play against a team of past selves, with supervised data alone.

[digest] Each round the newest player answers the data's prompts; the policy, beginning from it, learns to prefer the
data's answers to those of the last three rounds, against the last three players at once; then it joins the team. Ours:
degenerate pairs are left out and counted, and the round that is kept is chosen on prompts of the task's calibration
split, never on the test split.

The stages of the run are ``start`` (where there is one), ``held-out-0``, ``round-1``, ``held-out-1``, ``round-2``, ...
Beside them lie ``players/`` (see :class:`Team`) and ``scores/``. A killed run goes on in the middle of each.
"""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillweave.base import Base
from skillweave.delta import Delta
from skillweave.errors import NothingLearnt, UserError
from skillweave.methods.tpaw.config import FAULTS, TpawConfig
from skillweave.methods.training.answers import choose_entries, mean_score, sample_answers
from skillweave.methods.training.run import Run
from skillweave.methods.training.settings import AnswerSettings, TrainingSettings
from skillweave.tasks import Entry, Task, load_task

if TYPE_CHECKING:
    from skillweave.methods.tpaw.judge import Judge
    from skillweave.methods.tpaw.rows import Rows
    from skillweave.methods.tpaw.team import Team

_ROUND = ("generated_score", "generations", "kept", "pairs", "players", "steps", "loss_last", "margin", "seconds")
_HELD_OUT = ("score", "log_prob", "tokens", "kl_to_start")


def run(base: Base, config: TpawConfig, out_dir: Path) -> Delta:
    """Align ``base`` with the answers of ``config.task`` by team self-play; the delta of the round that is kept.

    The delta is saved in ``out_dir/"delta"``, and is one on ``base``: supervised training or a ``start`` delta
    that went before is part of it. ``base`` itself is not changed. Called again on the same folder after a kill it
    goes on, to the same weights as an unbroken run. Under ``torchrun`` the processes share generation, scoring and
    the batch, and must all see ``out_dir``. Raises :class:`UserError` where settings do not fit.
    """
    from skillweave.methods.training.trainer import quiet

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
    """The state of the play: who is in the team, what is trained on and what is judged on."""

    run: Run[TpawConfig, Task]
    team: Team
    judge: Judge
    rows: Rows
    entries: list[Entry]

    @classmethod
    def begin(cls, run: Run[TpawConfig, Task]) -> _SelfPlay:
        """Read the data, and make player 0: the base, the ``start`` delta, or either after supervised training."""
        from skillweave.methods.tpaw.judge import Judge
        from skillweave.methods.tpaw.rows import Rows
        from skillweave.methods.tpaw.team import Team

        config = run.config
        for split in ("train", "calibration"):
            run.data.pairs(split)  # an entry without an answer is named at once
        entries = run.short_enough("train")
        rejected = sum("rejected" in entry.metadata for entry in entries)
        if rejected:
            run.say(f"the rejected answers of {rejected} train rows are not used: tpaw plays against its own")
        held = run.short_enough("calibration", answered=True)[: config.held_out]
        team = Team(run)
        play = cls(run, team, Judge(run, team, held), Rows(run, team), entries)
        if config.start is not None or config.sft is not None:
            run.stage("start", play._make_start)
        return play

    def _make_start(self, folder: Path) -> dict[str, Any]:
        """Player 0, where it is not the bare base."""
        run, config = self.run, self.run.config
        if config.start is not None:
            run.policy = replace(run.policy, trained=_given(run, config.start))
        if config.sft is None:
            self.team.join(0)
            return {"steps": 0}
        figures = self._supervised(self.entries, config.sft, folder)
        self._become(0, folder)
        return figures

    def play(self) -> dict[str, Any]:
        """All rounds, each judged; the run's policy is the player that is kept. Returns what the choice was made by."""
        from skillweave.methods.training.trainer import learnt

        run, config = self.run, self.run.config
        judged = [self._judge(0)]
        best = 0
        for number in range(1, config.rounds + 1):
            round_ = run.stage(f"round-{number}", functools.partial(self._round, number), show=_ROUND)
            if not learnt(round_):
                why = "no step of the training had a gradient" if round_["steps"] else "no pair is left to learn from"
                run.say(f"{why}: the play ends here")
                break
            judged.append(self._judge(number))
            if judged[number] > judged[best]:
                best = number
            # A run that was cut off and goes on passes here again: players of later rounds are there, and stay.
            self.team.dismiss(stay={0, best, *self._players(number + 1), *range(number + 1, config.rounds + 1)})
            if config.patience is not None and number - best >= config.patience:
                run.say(f"no better round since round {best}: the play ends here")
                break
        kept = best if config.keep == "best" else len(judged) - 1
        run.policy = self.team.policy(kept)
        if run.policy.trained is None:  # only player 0 can be the bare base
            raise NothingLearnt(self._nothing_to_keep(judged))
        run.say(
            f"kept: round {kept} of {len(judged) - 1}"
            if kept
            else f"kept: the start, no round was better{_hint(judged)}"
        )
        return {"kept_round": kept, f"held_out_{config.judge_by}": judged}

    def _nothing_to_keep(self, judged: list[float]) -> str:
        if len(judged) == 1:
            found = self.run.figures["round-1"]
            if found["steps"]:
                return (
                    "nothing was learnt: no step of round 1 had a gradient; look into round-1/history.json, and raise "
                    "training.learning_rate or lower lam"
                )
            counts = ", ".join(f"{name} {found[name]}" for name in ("generations", *FAULTS, "too_long", "kept"))
            return (
                f"nothing was learnt: round 1 made no pair to learn from ({counts}): draw at a higher temperature, "
                "raise max_new_tokens or max_length, or let more pairs pass with drop"
            )
        return (
            f"no round was better than the base it began from (held-out {self.run.config.judge_by}: "
            f"{', '.join(f'{value:.3g}' for value in judged)}): there is nothing to keep{_hint(judged)}. `skillweave "
            "tpaw` on the same folder with keep=last gives the last round all the same, and does nothing again; or try "
            "another learning_rate in another folder"
        )

    def _players(self, number: int) -> list[int]:
        """The team of round ``number``, the newest first."""
        return list(range(number - 1, max(-1, number - 1 - self.run.config.players), -1))

    def _judge(self, number: int) -> float:
        stage = f"held-out-{number}"
        rivals = sorted({0, *self._players(number)}) if number else []
        figures = self.run.stage(stage, lambda _: self.judge.figures(number, rivals), show=_HELD_OUT)
        self.team.close()
        return figures[self.run.config.judge_by]

    # -- a round -----------------------------------------------------------------------------------------------------

    def _round(self, number: int, folder: Path) -> dict[str, Any]:
        from skillweave.methods.training.trainer import learnt

        config = self.run.config
        self.run.policy = self.team.policy(number - 1)
        asked = choose_entries(self.entries, config.prompts_per_round or len(self.entries), number - 1, config.seed)
        if config.loss == "sft":
            figures = self._supervised(asked, config.training, folder)
        else:
            figures = self._against(number, asked, folder)
        if learnt(figures):
            self._become(number, folder)
        return {**figures, "team_bytes": self.team.nbytes}

    def _supervised(self, entries: list[Entry], settings: TrainingSettings, folder: Path) -> dict[str, Any]:
        from skillweave.methods.training.sft import train_on_answers

        examples = [(entry.prompt, entry.answer) for entry in entries if entry.answer is not None]
        held_out = self.run.held_out(settings) if isinstance(settings, AnswerSettings) else []
        return train_on_answers(self.run, folder, settings, examples, held_out)

    def _against(self, number: int, asked: list[Entry], folder: Path) -> dict[str, Any]:
        """Generate, leave out what is degenerate, ask the team, train."""
        from skillweave.methods.tpaw.trainer import TeamTrainer, objective

        run, config = self.run, self.run.config
        samples = sample_answers(
            lambda: run.policy.open_to_sample(config), run.tokenizer, run.data, asked, config,
            folder / "samples.jsonl", samples=config.samples_per_prompt, name=folder.name, seed=config.seed,
            processes=run.processes,
        )  # fmt: skip
        players = self._players(number)
        rows = self.rows.of_round(number, players)
        self.team.close()
        figures: dict[str, Any] = {
            "generated_score": mean_score(samples), **self.rows.counts(number), "pairs": len(rows),
            "players": len(players), "steps": 0,
        }  # fmt: skip
        run.tell_cut_off(
            folder.name, figures["truncated"], sum(len(row.answers) for row in samples),
            f"max_new_tokens={config.max_new_tokens}", "were left out of the pairs",
        )  # fmt: skip
        run.tell_too_long(folder.name, figures["too_long"], figures["too_long"] + figures["kept"], "pairs")
        if not rows:
            return figures
        lengths = [sum(len(row["prompt"]) + len(side) for side in row["sides"]) for row in rows]
        trained = run.train(
            folder, config.training, rows, lengths,
            lambda model, arguments, order: TeamTrainer(
                model, run.tokenizer, arguments, rows, order, objective(config)
            ),
        )  # fmt: skip
        return {**figures, **trained}

    def _become(self, number: int, folder: Path) -> None:
        """The trained policy joins the team; what training left on the disk goes."""
        from skillweave.methods.training.trainer import drop_checkpoints

        self.run.policy = replace(self.run.policy, trained=folder / "policy")
        self.team.join(number)
        if self.run.processes.first:
            drop_checkpoints(folder)


def _hint(judged: list[float]) -> str:
    if len(set(judged)) > 1:
        return ""
    return " (all were judged alike: where the answers are free text that no verifier knows, set judge_by=log_prob)"


def _given(run: Run[TpawConfig, Task], folder: Path) -> Path:
    """The delta to begin from, as the run's own copy."""
    try:
        delta = Delta.from_pretrained(folder)
        delta.check_base(run.base.fingerprint, run.base.ref)
    except UserError as error:
        raise UserError(f"start: {error}") from error
    if run.config.train == "lora" and delta.kind != "lora":
        raise UserError(f"start: {folder} is a full delta, and train is lora: set train to full, or begin from a LoRA")
    own = run.folder / "start" / "policy"  # where supervised training puts its own in its place
    if run.processes.first:
        delta.save_pretrained(own)
    run.processes.wait()
    return own
