"""TRL's trainers made quiet, ordered and resumable: what a stage adds is its data and its loss."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import transformers
from transformers import PrinterCallback, TrainerCallback

from skillweave.artefact import disk_errors, write_json
from skillweave.errors import UserError
from skillweave.files.disk import sync_tree
from skillweave.files.parse_json import parse_json
from skillweave.files.read import read_text
from skillweave.methods.training.held_out import LOSS, looks
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.reporting import reporters
from skillweave.methods.training.settings import TrainingSettings
from skillweave.progress import bar

_MARK = "complete"


class QuietTrainer:
    """To be mixed in before a TRL trainer: no call home, no model card beside each checkpoint.

    ``watched`` maps keys of the trainer's log to the names that :func:`fit` gives them among its figures.
    """

    watched: Mapping[str, str] = {}

    def _send_telemetry(self) -> None:
        """TRL would report the model's kind to its makers; a person who wants that can run TRL itself."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The delta gets one card, from the report, not one from each checkpoint."""


class _Show(TrainerCallback):
    """Drives our progress bar; the note is the loss, and the reward margin where there is one.

    A loss that is not a number ends the run at once: nothing after it would be worth its time.
    """

    def __init__(self, advance: Callable[..., None]):
        self.advance = advance
        self._loss = self._held_out = ""

    def on_train_begin(self, args, state, control, **kwargs):
        self.advance(state.global_step)  # steps of the run that was cut off

    def on_step_end(self, args, state, control, **kwargs):
        self.advance(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise UserError(f"the loss is {logs['loss']} at step {state.global_step}: lower learning_rate")
            margin = next((f", margin {logs[key]:.3f}" for key in logs if key.endswith("margins")), "")
            self._loss = f"loss {logs['loss']:.4f}{margin}"
            self.advance(0, note=self._loss + self._held_out)
        if logs and LOSS in logs:
            self._held_out = f", held out {logs[LOSS]:.4f}"
            self.advance(0, note=self._loss + self._held_out)


class _Mark(TrainerCallback):
    """Marks a checkpoint once every process has written its part: a kill while saving leaves one without a mark."""

    def __init__(self, processes: Processes):
        self.processes = processes

    def on_save(self, args, state, control, **kwargs):
        self.processes.wait()
        if self.processes.first:
            mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def mark_whole(checkpoint: Path) -> None:
    """Mark a checkpoint as whole, by the sizes of its files, once they are all on the disk."""
    sync_tree(checkpoint)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    write_json(checkpoint / _MARK, {file.relative_to(checkpoint).as_posix(): file.stat().st_size for file in files})


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is marked and has every file of its mark: a kill may leave one that is half removed."""
    try:
        text = read_text(checkpoint / _MARK)
        sizes = parse_json(text, str(checkpoint / _MARK)) if text else {}  # older marks are empty
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, UserError):
        return False


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``, if any."""
    whole = [checkpoint for checkpoint in folder.glob("checkpoint-*") if _is_whole(checkpoint)]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def micro_batch(share: int, most: int | None) -> int:
    """The largest divisor of ``share`` that is at most ``most``: all micro-batches of a step are then equal in size."""
    return max(size for size in range(1, share + 1) if share % size == 0 and (most is None or size <= most))


def trainer_arguments(
    settings: TrainingSettings, processes: Processes, *, folder: Path, steps: int, seed: int, bf16: bool, device: str,
    save_every: int, gradient_checkpointing: bool,
) -> dict[str, Any]:  # fmt: skip
    """Keyword arguments for transformers' TrainingArguments and TRL's configs. The data must be laid out by
    :func:`batch_order`."""
    share = processes.share(settings.batch_size)
    size = micro_batch(share, settings.micro_batch_size)
    cpu = device == "cpu"
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": share // size,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": round(settings.warmup * steps),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": bf16,
        "use_cpu": cpu,
        "dataloader_pin_memory": not cpu,
        "ddp_backend": "gloo" if cpu and processes.world > 1 else None,
        "activation_checkpointing": gradient_checkpointing,
        "train_sampling_strategy": "sequential",
        "seed": seed,
        "save_strategy": "steps",
        "save_steps": save_every,
        # Two, because the older one goes before the newer one bears its mark.
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def fit(trainer: Any, label: str, processes: Processes, report_to: Sequence[str] = ()) -> dict[str, Any]:
    """Train to the end, from the newest whole checkpoint where there is one; the figures of the steps.

    Returns ``steps``, ``loss_first``, ``loss_last`` (mean of the last fifth of the steps), and likewise what the
    trainer's ``watched`` names, over the last fifth of the steps that tell it; ``idle_steps``, where there are steps
    without any gradient; where there are looks at held-out examples, ``held_out_loss`` (of the weights that are kept),
    ``held_out_best`` and ``best_step``. The log of all steps lies in ``history.json``, the looks in ``curve.json``;
    ``report_to`` names services that get the log too (:mod:`~skillweave.methods.training.reporting`).
    """
    folder = Path(trainer.args.output_dir)
    checkpoint = processes.from_first(lambda: latest_checkpoint(folder))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Mark(processes))
    if processes.first:
        done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        for reporter in reporters(report_to, folder, done):
            trainer.add_callback(reporter)
    with bar(label, trainer.args.max_steps, shown=processes.first) as advance, disk_errors(folder):
        trainer.add_callback(_Show(advance))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]

    def mean(key: str) -> float:
        values = [entry[key] for entry in history if key in entry]  # not every step need measure everything
        last = values[-max(1, len(values) // 5) :]
        return sum(last) / len(last)

    seen = looks(trainer.state.log_history)
    if processes.first:
        at = {look["step"]: {"held_out_loss": look["held_out_loss"]} for look in seen}
        write_json(folder / "history.json", [{**entry, **at.get(entry["step"], {})} for entry in history])
        if seen:
            write_json(folder / "curve.json", seen)
    figures: dict[str, Any] = {"steps": len(history), "loss_first": history[0]["loss"], "loss_last": mean("loss")}
    if idle := sum(entry.get("grad_norm") == 0 for entry in history):
        figures["idle_steps"] = idle
    return {**figures, **{name: mean(key) for key, name in trainer.watched.items()}, **_of_looks(trainer, seen)}


def learnt(figures: Mapping[str, Any]) -> bool:
    """Whether a training with these figures can have changed a weight: one of its steps had a gradient."""
    return figures["steps"] > figures.get("idle_steps", 0)


def _of_looks(trainer: Any, seen: list[dict[str, float]]) -> dict[str, float]:
    """The figures of the held-out loss: of the weights that are kept, and the lowest, with its step."""
    if not seen:
        return {}
    best = min(seen, key=lambda look: look["held_out_loss"])
    kept = best if trainer.args.load_best_model_at_end else seen[-1]
    return {"held_out_loss": kept["held_out_loss"], "held_out_best": best["held_out_loss"], "best_step": best["step"]}


def drop_checkpoints(folder: Path) -> None:
    """Free the disk of a finished stage: weights, optimiser and random state of its checkpoints."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, transformers, TRL and datasets say nothing but errors and draw no bars of their own."""
    loggers = [logging.getLogger(name) for name in ("transformers", "trl", "accelerate", "peft")]
    levels = [logger.level for logger in loggers]
    own_bars = datasets.are_progress_bars_disabled(), transformers.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # TRL and transformers warn each other of names that one of them will drop.
            warnings.filterwarnings("ignore", category=FutureWarning)
            # Its GRPO calls the argument experimental through which a method hands it conversations of its own.
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not own_bars[0]:
            datasets.enable_progress_bars()
        if own_bars[1]:
            transformers.utils.logging.enable_progress_bar()
