"""Prompts with a verifier: from files, from reasoning-gym, or from the small built-in generators.

The modules import in one direction, from the top of this list to the bottom:

* ``expert_traces``: what experts did on a task's prompts, from a file or from a scripted expert
* ``with_tools``: a task with the tools that solve it
* ``load``: any description of a task -> :class:`Task`
* ``evaluate``, ``reasoning``: scores with intervals; tasks of reasoning-gym
* ``check``, ``few_shot``, ``rows``, ``samples``, ``stream``: reports, prompts with examples, rows -> entries, votes,
  splits of a generator
* ``task``: entries, splits, scores
* ``spec``, ``builtin``, ``row_forms``, ``calls``: settings, generators, forms of a row, answers that are tool calls
* ``messages``, ``readers``, ``verifiers``: chat messages, data files, judges of answers
"""

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
