"""TRL's trainers without their noise, resumable from checkpoints; a stage adds its data and its loss."""

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
from skillweave.methods.training.held_out import LOSS, evaluations
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.reporting import reporters
from skillweave.methods.training.settings import TrainingSettings
from skillweave.methods.training.trl_hooks import NOISY_LOGGERS, ROLLOUT_FUNC_WARNING
from skillweave.progress import bar

_COMPLETE = "complete"
"""The file that marks a checkpoint as complete."""


class QuietTrainer:
    """Mixin for TRL trainers: disables telemetry and the model card of each checkpoint.

    ``watched`` maps keys of the trainer's log to the names that they get in the figures of :func:`fit`.
    """

    watched: Mapping[str, str] = {}

    def _send_telemetry(self) -> None:
        """Do nothing. TRL would report the kind of model and hardware to its makers."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing. The delta gets one card, from the report, and the checkpoints need none."""


class _Show(TrainerCallback):
    """Drives our progress bar. Its note is the loss, the reward margin if there is one, and the held-out loss.

    Raises :class:`UserError` at once if the loss is not a finite number, since nothing after it would be of use.
    """

    def __init__(self, advance: Callable[..., None]):
        self.advance = advance
        self._loss = self._held_out = ""

    def on_train_begin(self, args, state, control, **kwargs):
        self.advance(state.global_step)  # the steps before the training was cut off

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


class _MarkComplete(TrainerCallback):
    """Marks a checkpoint once every process has written its part; a kill before that leaves it without a mark."""

    def __init__(self, processes: Processes):
        self.processes = processes

    def on_save(self, args, state, control, **kwargs):
        self.processes.wait()
        if self.processes.first:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class _CountOn(TrainerCallback):
    """Lets TRL's count of tokens go on where the checkpoint was written; TRL itself starts again at 0."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        counts = [entry["num_tokens"] for entry in state.log_history if "num_tokens" in entry]
        if counts and hasattr(self.trainer, "_total_train_tokens"):
            self.trainer._total_train_tokens = counts[-1]


def mark_complete(checkpoint: Path) -> None:
    """Mark a checkpoint as complete after all its files have reached the disk; the mark lists their sizes."""
    sync_tree(checkpoint)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    write_json(checkpoint / _COMPLETE, {file.relative_to(checkpoint).as_posix(): file.stat().st_size for file in files})


def _is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint is marked and has every file of its mark. A kill may leave one that is half deleted."""
    try:
        text = read_text(checkpoint / _COMPLETE)
        sizes = parse_json(text, str(checkpoint / _COMPLETE)) if text else {}  # marks of older versions are empty
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, UserError):
        return False


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in ``folder``, or None."""
    complete = [checkpoint for checkpoint in folder.glob("checkpoint-*") if _is_complete(checkpoint)]
    return max(complete, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def micro_batch(share: int, most: int | None) -> int:
    """The largest divisor of ``share`` that is at most ``most``, so that all micro-batches of a step are equal."""
    return max(size for size in range(1, share + 1) if share % size == 0 and (most is None or size <= most))


def trainer_arguments(
    settings: TrainingSettings,
    processes: Processes,
    *,
    folder: Path,
    steps: int,
    seed: int,
    bf16: bool,
    device: str,
    save_every: int,
    gradient_checkpointing: bool,
) -> dict[str, Any]:
    """Keyword arguments for TrainingArguments of transformers and the configs of TRL.

    The trainer reads its rows one after the other, so they must be in the order of
    :func:`~skillweave.methods.training.order.batch_order`.
    """
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
        # Two, because the older checkpoint is deleted before the newer one is marked as complete.
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def fit(trainer: Any, label: str, processes: Processes, report_to: Sequence[str] = ()) -> dict[str, Any]:
    """Train to the end, from the newest complete checkpoint if there is one, and return the figures:

    - ``steps``, ``loss_first``, and ``loss_last``, the mean of the last fifth of the steps.
    - The names in the trainer's ``watched``: each a mean over the last fifth of the steps that logged it.
    - ``idle_steps``, if some steps had no gradient at all.
    - ``held_out_loss`` (of the weights that are kept), ``held_out_best`` and ``best_step``, if there were evaluations.

    ``history.json`` gets the log of all steps, ``curve.json`` the evaluations. ``report_to`` names services that get
    the log too (:mod:`~skillweave.methods.training.reporting`).
    """
    folder = Path(trainer.args.output_dir)
    checkpoint = processes.from_first(lambda: latest_checkpoint(folder))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_MarkComplete(processes))
    trainer.add_callback(_CountOn(trainer))
    if processes.first:
        for reporter in reporters(report_to, folder, _step_of(checkpoint) if checkpoint else 0):
            trainer.add_callback(reporter)
    with bar(label, trainer.args.max_steps, shown=processes.first) as advance, disk_errors(folder):
        trainer.add_callback(_Show(advance))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]

    def mean(key: str) -> float:
        values = [entry[key] for entry in history if key in entry]  # not every step logs everything
        last = values[-max(1, len(values) // 5) :]
        return sum(last) / len(last)

    curve = evaluations(trainer.state.log_history)
    if processes.first:
        held_out = {point["step"]: {"held_out_loss": point["held_out_loss"]} for point in curve}
        write_json(folder / "history.json", [{**entry, **held_out.get(entry["step"], {})} for entry in history])
        if curve:
            write_json(folder / "curve.json", curve)
    figures: dict[str, Any] = {"steps": len(history), "loss_first": history[0]["loss"], "loss_last": mean("loss")}
    if idle := sum(entry.get("grad_norm") == 0 for entry in history):
        figures["idle_steps"] = idle
    watched = {name: mean(key) for key, name in trainer.watched.items()}
    return {**figures, **watched, **_held_out_figures(curve, trainer.args.load_best_model_at_end)}


def _held_out_figures(curve: list[dict[str, float]], keeps_best: bool) -> dict[str, float]:
    """The held-out loss of the weights that are kept, and the lowest one with its step; empty without evaluations."""
    if not curve:
        return {}
    best = min(curve, key=lambda point: point["held_out_loss"])
    kept = best if keeps_best else curve[-1]
    return {"held_out_loss": kept["held_out_loss"], "held_out_best": best["held_out_loss"], "best_step": best["step"]}


def learnt(figures: Mapping[str, Any]) -> bool:
    """Whether a training with these figures can have changed a weight: at least one step had a gradient."""
    return figures["steps"] > figures.get("idle_steps", 0)


def drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished stage: weights, optimiser and random state."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context in which transformers, TRL and datasets log errors only and draw no progress bars of their own."""
    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    bars_of_datasets = not datasets.are_progress_bars_disabled()
    bars_of_transformers = transformers.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # TRL and transformers warn each other of names that one of them will remove.
            warnings.filterwarnings("ignore", category=FutureWarning)
            # TRL warns that ``rollout_func`` is experimental; we rely on it.
            warnings.filterwarnings("ignore", message=ROLLOUT_FUNC_WARNING)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars_of_datasets:
            datasets.enable_progress_bars()
        if bars_of_transformers:
            transformers.utils.logging.enable_progress_bar()
