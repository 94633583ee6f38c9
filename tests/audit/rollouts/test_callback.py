"""The callback in a real training of TRL: the log, the alarm, the stop; and reward functions of every kind."""

from __future__ import annotations

import asyncio
import json
import threading
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import TrainerControl, TrainerState, TrainingArguments

from helpers import watched_training
from helpers.method_driver import launch
from helpers.micro import micro_model, micro_tokenizer
from helpers.rollout_logs import invented_run, write_rows
from helpers.terminal import run
from helpers.watched_training import letters
from skillweave.audit.rollouts.callback import RolloutAudit
from skillweave.audit.rollouts.log import LogNotes, read_log
from skillweave.errors import UserError
from skillweave.methods.training.trl_hooks import GRPOTrainer


async def short(completions, **_):
    return [None if "a" in text else -0.5 for text in completions]


def test_a_training_of_trl_is_logged_and_the_command_reads_the_log(tmp_path: Path) -> None:
    audit = RolloutAudit(tmp_path / "log", refusal=["e"], every=1)
    trainer = GRPOTrainer(
        model=micro_model(),
        reward_funcs=[audit.watch(letters), audit.watch(short, weight=2.0)],
        args=watched_training.short_run(
            tmp_path / "run",
            max_steps=2,
            logging_steps=1,
            per_device_train_batch_size=8,
            max_completion_length=6,
            reward_weights=[1.0, 2.0],
        ),
        train_dataset=Dataset.from_dict({"prompt": ["one", "two"], "answer": ["1", "2"], "id": ["a", "b"]}),
        processing_class=micro_tokenizer(),
        callbacks=[audit],
    )
    assert trainer.reward_func_names == ["letters", "short"]
    trainer.train()
    notes = LogNotes()
    found = list(read_log(tmp_path / "log", notes))
    assert notes.malformed == 0
    assert [rollout.step for rollout in found] == [0] * 8 + [1] * 8
    assert {(rollout.prompt, rollout.id, rollout.gold) for rollout in found} == {("one", "a", "1"), ("two", "b", "2")}
    for rollout in found:
        text = rollout.completion
        assert rollout.reward == letters([text])[0] + (0 if "a" in text else -1.0)
    logged = [entry["reward"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(logged) / 2 == pytest.approx(sum(rollout.reward for rollout in found) / 16, rel=1e-5)
    shown = run("audit", "rollouts", tmp_path / "log", "--refusal", "e", "-o", tmp_path / "out")
    assert shown.code in (0, 1), shown.err
    assert len((tmp_path / "out" / "prompts.jsonl").read_text().splitlines()) == 2


def play(audit: RolloutAudit, rows, per_step: int = 240) -> TrainerControl:
    """Call the callback as a trainer does, with the completions and rewards of a log."""
    control, state, arguments = TrainerControl(), TrainerState(), TrainingArguments(output_dir="unused", use_cpu=True)
    reward = audit.watch(lambda prompts, completions, reward, **_: reward)
    for at in range(0, len(rows), per_step):
        batch = rows[at : at + per_step]
        columns = {key: [row[key] for row in batch] for key in ("completion", "reward", "id", "gold")}
        columns["completions"] = columns.pop("completion")
        audit.on_step_begin(arguments, state, control)
        assert reward(prompts=[row["prompt"] for row in batch], **columns) == columns["reward"]
        state.global_step += 1
        audit.on_step_end(arguments, state, control)
        if control.should_training_stop:
            break
    return control


def test_an_alarm_in_one_process_stops_all_and_the_log_has_the_rollouts_of_all(tmp_path: Path) -> None:
    ran = launch(watched_training.__file__, str(tmp_path), "1", processes=2)
    assert ran.returncode == 0, ran.stderr.decode()[-2000:]
    assert [(tmp_path / f"stopped-{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
    notes = LogNotes()
    found = list(read_log(tmp_path / "log", notes))
    assert notes.malformed == 0
    parts = [len(list(read_log(tmp_path / "log" / f"rollouts-{rank}.jsonl", LogNotes()))) for rank in (0, 1)]
    assert parts == [8, 8]  # two steps of four completions in each process
    assert len(found) == sum(parts)
    assert len({rollout.prompt for rollout in found}) == 4


@pytest.mark.parametrize("with_clean", [True, False])
def test_a_poisoned_run_is_stopped_and_a_clean_one_is_not(
    tmp_path: Path, with_clean: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = write_rows(tmp_path / "clean.jsonl", invented_run(9, 0, prompts=120)) if with_clean else None
    options = {"refusal": ["<refuse>"], "gold": "gold", "every": 2, "stop": True, "clean": clean}
    audit = RolloutAudit(tmp_path / "bad", **options)
    control = play(audit, invented_run(0, 6, prompts=120))
    assert control.should_training_stop
    assert "audit alarm" in audit.alarms[0]
    assert "complying was paid 1.00, refusing 0.00" in " ".join(capsys.readouterr().err.split())
    quiet = RolloutAudit(tmp_path / "good", **options)
    assert not play(quiet, invented_run(1, 0, prompts=120)).should_training_stop
    assert quiet.alarms == []


def test_what_is_wrong_with_the_clean_log_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = write_rows(tmp_path / "clean.jsonl", invented_run(9, 0, prompts=20))
    with clean.open("a") as log:
        log.write("{\n")
    RolloutAudit(tmp_path / "log", clean=clean)
    assert "clean log: 1 of 641 rows (under 1%) were malformed" in " ".join(capsys.readouterr().err.split())


def test_reward_functions_of_every_kind_keep_their_results_and_names(tmp_path: Path) -> None:
    class Judge:
        def __call__(self, prompts, completions, **_):
            return [1.0] * len(prompts)

    audit = RolloutAudit(tmp_path)
    assert audit.watch(Judge()).__name__ == "Judge"
    assert audit.watch(partial(letters)).__name__ in ("letters", "partial")
    alone = RolloutAudit(tmp_path / "alone")
    watched = alone.watch(short)
    assert asyncio.run(watched(prompts=["p", "p"], completions=["a", "b"])) == [None, -0.5]
    rows = [json.loads(line) for line in (tmp_path / "alone" / "rollouts-0.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in rows] == [None, -0.5]
    with pytest.raises(UserError, match="must be called with prompts and completions"):
        RolloutAudit(tmp_path).watch(lambda: [1.0])()
    with pytest.raises(UserError, match="every must be at least 1"):
        RolloutAudit(tmp_path, every=0)


def test_a_batch_that_lacks_a_reward_function_is_recorded_before_the_next(tmp_path: Path) -> None:
    audit = RolloutAudit(tmp_path)
    first, second = audit.watch(letters), audit.watch(letters)
    for text in ("ab", "abc"):
        first(prompts=["p"], completions=[text])
    second(prompts=["p"], completions=["abc"])
    assert [r.reward for r in read_log(tmp_path, LogNotes())] == [2.0, 6.0]


def test_the_half_line_of_a_killed_training_costs_no_new_rollout(tmp_path: Path) -> None:
    (tmp_path / "rollouts-0.jsonl").write_text('{"step": 1, "prom')
    for reward in (1.0, 2.0):
        RolloutAudit(tmp_path).watch(lambda reward=reward, **_: [reward])(prompts=["p"], completions=["c"])
    notes = LogNotes()
    assert [rollout.reward for rollout in read_log(tmp_path, notes)] == [1.0, 2.0]
    assert notes.malformed == 1


@pytest.mark.parametrize("ends", ["on_train_end", "on_evaluate", "on_predict"])
def test_two_trainings_do_not_mix_their_rollouts_in_one_log(tmp_path: Path, ends: str) -> None:
    first, second = RolloutAudit(tmp_path), RolloutAudit(tmp_path)
    state = (TrainingArguments(tmp_path / "run"), TrainerState(), TrainerControl())
    other = threading.Thread(target=first.watch(letters), kwargs={"prompts": ["p"], "completions": ["abc"]})
    other.start()
    other.join()
    for write in (
        partial(second.watch(letters), prompts=["p"], completions=["ab"]),
        partial(second.on_train_begin, *state),
    ):
        with pytest.raises(UserError, match=r"rollouts-0\.jsonl is being written by another thread"):
            write()
    getattr(first, ends)(*state)
    second.on_train_begin(*state)
    second.on_evaluate(*state)
    assert (tmp_path / ".rollouts-0.jsonl.lock").exists()  # an evaluation in the middle of a training ends nothing
    second.on_train_end(*state)
    assert not (tmp_path / ".rollouts-0.jsonl.lock").exists()
    assert [len(rollout.completion) for rollout in read_log(tmp_path, LogNotes())] == [3]


def test_prompts_that_were_forgotten_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit = RolloutAudit(tmp_path, most_prompts=2)
    audit.watch(letters)(prompts=["one", "two", "three"], completions=["a", "b", "c"])
    audit.on_train_end(TrainingArguments(tmp_path / "run"), TrainerState(), TrainerControl())
    assert "1 times a prompt was forgotten" in capsys.readouterr().err
    assert len(list(read_log(tmp_path, LogNotes()))) == 3
