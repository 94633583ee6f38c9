"""Prompts with a verifier: from files, from reasoning-gym, or from the small generators built in."""

from skillweave.tasks.evaluate import Score, evaluate, interval, wilson
from skillweave.tasks.load import load_task, read_spec
from skillweave.tasks.spec import Splits, TaskSpec
from skillweave.tasks.task import Entry, Task, one_each_prompt

__all__ = [
    "Entry",
    "Score",
    "Splits",
    "Task",
    "TaskSpec",
    "evaluate",
    "interval",
    "load_task",
    "one_each_prompt",
    "read_spec",
    "wilson",
]
