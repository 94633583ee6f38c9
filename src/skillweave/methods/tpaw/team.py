"""The team: past policies as deltas on one base, and what each of them thinks of an answer, asked once and kept."""

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
from skillweave.methods.tpaw.pairs import Side
from skillweave.methods.training.head import answer_log_probs, install_scoring_head
from skillweave.methods.training.pieces import Work, in_pieces
from skillweave.methods.training.policy import Policy
from skillweave.methods.training.run import Run
from skillweave.tasks import Task


class Team:
    """The players of a run; number k is the policy after k rounds, number 0 the supervised model they start from.

    A player is a delta's folder, ``players/k`` (there is none for the bare base): LoRA factors, or the difference of
    all that is trained, in the base's own precision. Beside the base, at most one player is in memory at a time.
    """

    def __init__(self, run: Run[TpawConfig, Task]) -> None:
        self._run = run
        self._start = run.policy
        self._loaded: tuple[int, Any] | None = None

    def policy(self, number: int) -> Policy:
        """A player, to be opened. Raises ``ValueError`` for one that was dismissed."""
        folder = self._folder(number)
        if number and not folder.is_dir():
            raise ValueError(f"player {number} is not in the team")
        return replace(self._start, trained=folder if folder.is_dir() else None)

    def join(self, number: int) -> None:
        """The run's policy becomes player ``number``; the folder it lay in goes."""
        trained = self._run.policy.trained
        if self._run.processes.first and trained is not None and trained != self._folder(number):
            self._run.policy.delta(self._run.base, self._run.config.train).save_pretrained(self._folder(number))
            shutil.rmtree(trained, ignore_errors=True)
        self._run.processes.wait()
        self._run.policy = self.policy(number)

    def dismiss(self, stay: Collection[int]) -> None:
        """Free the disk of all players but ``stay``; what they said of answers is kept."""
        if self._run.processes.first:
            for folder in (self._run.folder / "players").glob("*"):
                if folder.name.isdigit() and int(folder.name) not in stay:
                    shutil.rmtree(folder, ignore_errors=True)
        self._run.processes.wait()

    @property
    def nbytes(self) -> int:
        """Bytes on disk of all players that are kept: the team's, the start and the best so far."""
        return sum(file.stat().st_size for file in (self._run.folder / "players").rglob("*") if file.is_file())

    def log_probs(self, number: int, name: str, sides: Sequence[Side]) -> list[float]:
        """The summed log-probability (nats) that a player gives each answer, kept as ``scores/player-k/NAME.jsonl``."""
        run = self._run

        def prepare() -> tuple[list[list[int]], Work]:
            rows = [(prompt_ids(run.tokenizer, prompt), answer_ids(run.tokenizer, answer)) for prompt, answer in sides]
            model = self._open(number) if rows else None

            def work(_: int, piece: Sequence[int]) -> list[float]:
                inputs = padded([rows[index] for index in piece], run.tokenizer.pad_token_id, run.policy.device)
                with (
                    torch.no_grad(),
                    torch.autocast(run.policy.device.type, torch.bfloat16, enabled=run.config.autocast),
                ):
                    return answer_log_probs(model, inputs).tolist()

            return by_length(
                [len(prompt) + len(answer) for prompt, answer in rows], run.config.sampling_batch_size
            ), work

        path = run.folder / "scores" / f"player-{number}" / f"{name}.jsonl"
        # Many and short: they leave no line in a log.
        return in_pieces(path, prepare, processes=run.processes, label=f"player {number}: {name}", trace=False)

    def open_to_sample(self, number: int) -> Any:
        """A player that answers, in the precision it is trained in; the one that was asked last makes room."""
        self.close()
        return self.policy(number).open_to_sample(self._run.config)

    def close(self) -> None:
        """Free the memory of the player that was asked last."""
        self._loaded = None

    def _folder(self, number: int) -> Path:
        return self._run.folder / "players" / str(number)

    def _open(self, number: int) -> Any:
        """The player in the precision it is trained in, so that policy and player agree where they are the same."""
        if self._loaded is None or self._loaded[0] != number:
            self.close()
            model = self.policy(number).open_to_train(self._run.config, seed=0).eval()
            install_scoring_head(model)
            self._loaded = number, model
        return self._loaded[1]
