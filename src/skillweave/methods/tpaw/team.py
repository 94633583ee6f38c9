"""The team: past policies as deltas on one base, and the log-probabilities that they give to answers."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from skillweave.base.batching import by_length, padded
from skillweave.base.chat import answer_ids, prompt_ids
from skillweave.methods.tpaw.config import TpawConfig
from skillweave.methods.tpaw.pairs import PromptAnswer
from skillweave.methods.training.head import answer_log_probs, install_scoring_head
from skillweave.methods.training.pieces import Work, in_pieces
from skillweave.methods.training.policy import Policy
from skillweave.methods.training.run import Run
from skillweave.tasks import Task


class Team:
    """The players of a run: player k is the policy after k rounds, player 0 the model before the first round.

    A player is a delta in the folder ``players/k``: LoRA factors, or the difference of all trained weights, in the
    base's own precision. Player 0 has no folder if it is the base itself. At most one player is in memory at a time,
    beside the base.
    """

    def __init__(self, run: Run[TpawConfig, Task]) -> None:
        self._run = run
        self._start = run.policy
        self._loaded: tuple[int, Any] | None = None

    def policy(self, number: int) -> Policy:
        """A player as a policy that can be opened. Raises ``ValueError`` if the player was dismissed."""
        folder = self._folder(number)
        if number and not folder.is_dir():
            raise ValueError(f"player {number} is not in the team")
        return replace(self._start, trained=folder if folder.is_dir() else None)

    def join(self, number: int) -> None:
        """Make the run's policy player ``number``, and delete the folder that the policy was in."""
        trained = self._run.policy.trained
        if self._run.processes.first and trained is not None and trained != self._folder(number):
            self._run.policy.delta(self._run.base, self._run.config.train).save_pretrained(self._folder(number))
            shutil.rmtree(trained, ignore_errors=True)
        self._run.processes.wait()
        self._run.policy = self.policy(number)

    def dismiss(self, stay: Collection[int]) -> None:
        """Delete the deltas of all players except ``stay``; the log-probabilities that they gave stay stored."""
        if self._run.processes.first:
            for folder in (self._run.folder / "players").glob("*"):
                if folder.name.isdigit() and int(folder.name) not in stay:
                    shutil.rmtree(folder, ignore_errors=True)
        self._run.processes.wait()

    @property
    def nbytes(self) -> int:
        """The bytes on disk of all players that are stored: the team, player 0 and the best one so far."""
        return sum(file.stat().st_size for file in (self._run.folder / "players").rglob("*") if file.is_file())

    def log_probs(self, number: int, name: str, answers: Sequence[PromptAnswer]) -> list[float]:
        """The summed log-probability that a player gives each answer, in nats.

        The values are stored in ``scores/player-k/NAME.jsonl``, and read from there if the file exists.
        """
        run = self._run

        def prepare() -> tuple[list[list[int]], Work]:
            rows = [
                (prompt_ids(run.tokenizer, prompt), answer_ids(run.tokenizer, answer)) for prompt, answer in answers
            ]
            model = self._open(number) if rows else None

            def work(_: int, piece: Sequence[int]) -> list[float]:
                inputs = padded([rows[index] for index in piece], run.tokenizer.pad_token_id, run.policy.device)
                with (
                    torch.no_grad(),
                    torch.autocast(run.policy.device.type, torch.bfloat16, enabled=run.config.autocast),
                ):
                    return answer_log_probs(model, inputs).tolist()

            lengths = [len(prompt) + len(answer) for prompt, answer in rows]
            return by_length(lengths, run.config.sampling_batch_size), work

        path = run.folder / "scores" / f"player-{number}" / f"{name}.jsonl"
        # These jobs are many and short, so they leave no line in a log.
        return in_pieces(path, prepare, processes=run.processes, label=f"player {number}: {name}", trace=False)

    def open_to_sample(self, number: int) -> Any:
        """Open a player to generate answers, in the precision of the training; the player in memory is closed first."""
        self.close()
        return self.policy(number).open_to_sample(self._run.config)

    def close(self) -> None:
        """Free the memory of the player that :meth:`log_probs` opened last."""
        self._loaded = None

    def _folder(self, number: int) -> Path:
        return self._run.folder / "players" / str(number)

    def _open(self, number: int) -> Any:
        """The player in the precision of the training: an equal policy then gives the same log-probabilities."""
        if self._loaded is None or self._loaded[0] != number:
            self.close()
            model = self.policy(number).open_to_train(self._run.config, seed=0).eval()
            install_scoring_head(model)
            self._loaded = number, model
        return self._loaded[1]
