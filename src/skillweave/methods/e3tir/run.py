"""Run E3-TIR: optional supervised training, the warm-up with experts, then ordinary RL.

[digest] The warm-up takes 50 steps on three kinds of experience (expert prefixes, branches that continue them, and the
policy's own exploration). RL then has twice as many rollouts and no expert.

The stages of a run are ``before``, ``sft``, ``warm-up``, ``rl`` (each of these three if the settings ask for it) and
``after``. A killed run resumes in the middle of any of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from skillweave.base import Base
from skillweave.base.sizes import context_length
from skillweave.delta import Delta
from skillweave.errors import UserError, nearest
from skillweave.files.hashes import digest
from skillweave.methods.e3tir.config import SCRIPTED, E3tirConfig, GroupSettings
from skillweave.methods.e3tir.rollouts import Rollouts, in_turn
from skillweave.methods.e3tir.trace_tokens import EncodedTrace, encode_trace, supervised_rows
from skillweave.methods.e3tir.trainer import AgentTrainer
from skillweave.methods.e3tir.watch import CUT_OFF, EQUAL, StageWatch, evaluate_agent
from skillweave.methods.training.order import batch_order
from skillweave.methods.training.run import Run
from skillweave.methods.training.settings import AnswerSettings
from skillweave.methods.training.sft import train_on_rows
from skillweave.methods.training.trainer import quiet
from skillweave.progress import console, share_of
from skillweave.tasks import Entry, one_each_prompt
from skillweave.tasks.check import check_before
from skillweave.tasks.expert_traces import Trace, match_traces, read_traces, scripted_traces
from skillweave.tasks.with_tools import AgentTask, ToolSettings, load_agent
from skillweave.tools.call_format import CallFormat

_SHOWN = ("success", "calls", "failed_calls", "answered")
"""The figures of an evaluation that are printed."""


def run(base: Base, config: E3tirConfig, out_dir: Path) -> Delta:
    """Warm up ``base`` as an agent that uses the tools of ``config.task``; return the result as a delta on it.

    The delta is saved in ``out_dir/"delta"``; ``base`` itself does not change. A killed run resumes when it is called
    again with the same folder, and ends with the same weights as an unbroken run. Under ``torchrun`` the processes
    share the prompts of a batch; all of them must see ``out_dir``.

    Raises :class:`UserError` if settings or files do not fit.
    """
    agent = load_agent(config.task, config.tools)
    with agent.toolbox:
        state = Run.begin("e3tir", base, config, _material(agent, config), out_dir)
        if state.finished:
            return state.delta
        check_before(agent.task, state.tokenizer, state.max_length)
        with quiet():
            facts = _Agent.begin(state).all_stages()
        return state.finish(facts, _why_nothing(state.figures, config))


# -- what a run learns from -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Material:
    """What a run learns from: a task with its tools, and expert traces for some of its train prompts.

    * ``files``: digests of the files that the tools are made of
    * ``held_out``: traces for prompts of the calibration split; supervised training measures its loss on them
    * ``own_traces``: whether the traces are the user's; else the task's solver made them
    """

    agent: AgentTask
    traces: list[Trace]
    files: list[str]
    held_out: list[Trace]
    own_traces: bool

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.agent.task.name

    @property
    def key(self) -> str:
        """A digest of the task, the tools and the traces."""
        held_out = self.held_out if self.own_traces else []  # a solver's traces follow from the task and the tools
        traces = [[trace.id, trace.messages] for trace in [*self.traces, *held_out]]
        return digest([self.agent.task.key, self.agent.toolbox.schemas, self.files, traces])


def _material(agent: AgentTask, config: E3tirConfig) -> Material:
    """The task with the traces that the settings ask for. Raises :class:`UserError` if they ask and there are none."""
    train = one_each_prompt(agent.task.split("train"))
    calibration: list[Entry] = []
    if config.sft is not None and config.sft.held_out:
        calibration = agent.task.splits.get("calibration", [])
    own_traces = config.experts not in (None, SCRIPTED)
    traces: list[Trace] = []
    held_out: list[Trace] = []
    if not config.asks_experts or (config.experts is None and agent.solve is None):
        pass
    elif config.experts in (None, SCRIPTED):
        order = Random(config.seed).sample(train, len(train))
        traces = scripted_traces(agent, order[: config.traces])
        if config.sft is not None:
            held_out = scripted_traces(agent, calibration[: config.sft.held_out])
    else:
        traces, held_out = _traces_of_file(Path(config.experts), agent, config, calibration)
    if not traces and (asks := config.asks_experts):
        raise UserError(
            f"experts: {' and '.join(asks)} ask{'s' * (len(asks) == 1)} for expert traces, and there are none: name a "
            f"JSONL file of traces, or set {' and '.join(asks.values())}"
        )
    return Material(agent, traces, (config.tools or ToolSettings()).digests, held_out, own_traces)


def _traces_of_file(
    path: Path, agent: AgentTask, config: E3tirConfig, calibration: list[Entry]
) -> tuple[list[Trace], list[Trace]]:
    """One trace for each train prompt that has one in the user's file, in random order, and those of ``calibration``.

    Traces that are left out are counted on standard error.
    """
    rows = read_traces(path)
    by_prompt, elsewhere = match_traces(rows, agent.task)
    ids = {entry.id for entry in calibration}
    held_out = list({trace.id: trace for trace in rows if trace.id in ids}.values())
    repeats = sum(len(traces) - 1 for traces in by_prompt.values())
    for count, reason in (
        (elsewhere - len(held_out), "do not belong to a train prompt"),
        (repeats, "belong to a prompt that already has one"),
    ):
        if count:
            console.print(
                f"  {share_of(count, len(rows), 'traces')} of {path} {reason}, and are left out",
                soft_wrap=True,
            )
    first = [traces[0] for traces in by_prompt.values()]
    return Random(config.seed).sample(first, len(first))[: config.traces], held_out


# -- the stages -------------------------------------------------------------------------------------------------------


@dataclass
class _Agent:
    """The state of the training: the run, the format of calls, and the expert's traces in tokens."""

    run: Run[E3tirConfig, Material]
    call_format: CallFormat
    traces: dict[str, EncodedTrace]
    held_out_traces: list[EncodedTrace]

    @classmethod
    def begin(cls, run: Run[E3tirConfig, Material]) -> _Agent:
        """Encode the traces. Traces beyond the limits of a rollout are left out and counted."""
        config, limits = run.config, run.config.rollout
        for stage in (config.warm_up, config.rl):
            if stage.steps and stage.prompts % run.processes.world:
                raise UserError(
                    f"prompts {stage.prompts} does not divide over {run.processes.world} processes: each plays whole "
                    "groups"
                )
        call_format = config.tool_use.call_format(run.tokenizer, run.data.agent.toolbox)
        encoded = [encode_trace(call_format, trace) for trace in run.data.traces]
        tools = run.data.agent.toolbox.names
        for name in sorted({name for trace in encoded for name in trace.names} - set(tools)):
            raise UserError(
                f"experts: a trace calls the tool '{name}', which the model does not have; {nearest(name, tools)}"
            )

        def few_calls(trace: EncodedTrace) -> bool:
            return len(trace.names) <= limits.max_tool_calls

        def short(trace: EncodedTrace) -> bool:
            return len(trace.ids) <= limits.max_tokens and len(trace.prompt + trace.ids) <= run.max_length

        encoded = _within(
            run,
            encoded,
            few_calls,
            f"make more calls than rollout.max_tool_calls ({limits.max_tool_calls}) allows",
        )
        encoded = _within(
            run,
            encoded,
            short,
            f"are longer than rollout.max_tokens ({limits.max_tokens}), max_length ({config.max_length}) or the base's "
            "context allows",
        )
        held_out = [encode_trace(call_format, trace) for trace in run.data.held_out]
        return cls(run, call_format, {trace.id: trace for trace in encoded}, list(filter(short, held_out)))

    def all_stages(self) -> dict[str, Any]:
        """Run all stages in their order; return the evaluations before and after and what the experts wrote."""
        run, config = self.run, self.run.config
        before = run.stage("before", self._evaluate, show=_SHOWN)
        if config.sft is not None:
            run.trained("sft", functools.partial(self._supervised, config.sft))
        if config.warm_up.steps:
            run.trained("warm-up", functools.partial(self._rl, config.warm_up))
        if config.rl.steps:
            run.trained("rl", functools.partial(self._rl, config.rl))
        after = run.stage("after", self._evaluate, show=_SHOWN)
        return {"before": before, "after": after, "traces": len(self.traces), "expert_tokens": self._expert_tokens}

    @property
    def _expert_tokens(self) -> int:
        """The number of tokens that an expert had to write for this run."""
        return sum(trace.expert_tokens for trace in self.traces.values())

    def _evaluate(self, folder: Path) -> dict[str, Any]:
        """How well the policy does on prompts of the calibration split, with greedy decoding."""
        run, entries = self.run, self._held_out
        if not entries:
            return {}

        def in_first_process() -> dict[str, Any]:
            model = run.policy.open_to_sample(run.config)
            return evaluate_agent(model, run.data.agent, self.call_format, entries, run.config.rollout)

        return run.processes.from_first(in_first_process)

    def _supervised(self, settings: AnswerSettings, folder: Path) -> dict[str, Any]:
        """Supervised training on the expert's traces."""
        rows, held_out = supervised_rows(list(self.traces.values())), supervised_rows(self.held_out_traces)
        return train_on_rows(self.run, folder, settings, rows, held_out)

    def _rl(self, stage: GroupSettings, folder: Path) -> dict[str, Any]:
        """The warm-up (groups with experts, on prompts that have a trace) or ordinary RL (on all train prompts)."""
        run, config = self.run, self.run.config
        entries = self._prompts(stage)
        rollouts = Rollouts(
            run.data.agent,
            self.call_format,
            entries,
            self.traces,
            config,
            stage,
            name=folder.name,
            context=context_length(run.base.model),
        )
        watch = StageWatch(run, self.call_format, self._held_out, folder, stage)

        def make(model: Any, arguments: dict[str, Any]) -> AgentTrainer:
            # Every prompt has its turn before any prompt is repeated.
            order = batch_order([0] * len(entries), stage.prompts, stage.steps, arguments["seed"])
            turns = in_turn([entries[index].id for index in order], stage.prompts)
            watch.trainer = AgentTrainer(
                model,
                run.tokenizer,
                watch.arguments(arguments),
                turns,
                rollouts,
                config,
                stage,
                shown=watch.show,
                callbacks=[watch],
            )
            return watch.trainer

        figures = run.fit(folder, stage.training, stage.steps * stage.updates, make)
        equal, cut_off = watch.means.get(EQUAL, 0.0), watch.means.get(CUT_OFF, 0.0)
        if equal:
            run.say(
                f"{folder.name}: equal rewards in {equal:.0%} of the groups: no conversation was better than "
                "another there, so those groups taught nothing"
            )
        if cut_off:
            run.say(
                f"{folder.name}: {cut_off:.0%} of the policy's conversations were cut off at rollout.max_tokens="
                f"{config.rollout.max_tokens} (or at the base's context), without an answer. The policy learns from "
                "them as they are, without an end token. Raise rollout.max_tokens if this share is high"
            )
        figures |= {"equal_groups": equal, "cut_off": cut_off, "mean_reward": watch.means.get("reward", 0.0)}
        return {**figures, "sampled_tokens": watch.sampled, "expert_tokens": self._expert_tokens if stage.m else 0}

    def _prompts(self, stage: GroupSettings) -> list[Entry]:
        """The prompts of a stage: those with a trace if it needs traces, else all that leave room for an answer."""
        train = one_each_prompt(self.run.data.agent.task.split("train"))
        if stage.m and self.run.config.expert.branch != "own":
            return [entry for entry in train if entry.id in self.traces]
        return self._short_enough(train)

    @functools.cached_property
    def _held_out(self) -> list[Entry]:
        """The prompts of the calibration split on which the policy is evaluated; empty if there are none."""
        task, count = self.run.data.agent.task, self.run.config.evaluate_on
        if not count or not task.sizes["calibration"]:
            return []
        return self._short_enough(one_each_prompt(task.split("calibration"))[:count])

    def _short_enough(self, entries: list[Entry]) -> list[Entry]:
        """The entries whose prompt leaves room for an answer; the others are counted."""
        short = [entry for entry in entries if len(self.call_format.prompt_ids(entry.prompt)) < self.run.max_length]
        if not short:
            raise UserError(
                f"every prompt is longer than {self.run.max_length} tokens (max_length, or the base's context), "
                "including the description of the tools"
            )
        self.run.tell_too_long(self.run.data.name, len(entries) - len(short), len(entries), "prompts")
        return short


def _within(
    run: Run[Any, Any], traces: list[EncodedTrace], fits: Callable[[EncodedTrace], bool], beyond: str
) -> list[EncodedTrace]:
    """The traces that fit. The others are counted, with ``beyond`` as the reason. Raises UserError if none fits."""
    fitting = [trace for trace in traces if fits(trace)]
    if traces and not fitting:
        raise UserError(f"all {len(traces)} traces {beyond}")
    if len(fitting) < len(traces):
        run.say(f"{share_of(len(traces) - len(fitting), len(traces), 'traces')} {beyond}, and are left out")
    return fitting


def _why_nothing(stages: dict[str, dict[str, Any]], config: E3tirConfig) -> str:
    """Why no stage changed a weight, if that is so, and what to do. ``stages`` maps each stage to its figures."""
    flat = {name: figures for name, figures in stages.items() if figures.get("equal_groups") == 1}
    if not flat:
        return "no step of any stage had a gradient"
    rewards = ", ".join(f"{name}: mean reward {figures['mean_reward']:.3g}" for name, figures in flat.items())
    cut_off = max(figures["cut_off"] for figures in flat.values())
    cause = (
        f"; {cut_off:.0%} of the conversations were cut off at rollout.max_tokens={config.rollout.max_tokens}: raise it"
        if cut_off >= 0.5
        else ""
    )
    return (
        f"all rewards were equal in every group ({rewards}), so no conversation was better than "
        f"another and no weight was changed{cause}. Take easier prompts (or harder ones, if all answers were right), "
        "more conversations a prompt (n) or a higher rollout.temperature, or teach the calls first, with sft or with a "
        "warm_up on an expert's traces"
    )
