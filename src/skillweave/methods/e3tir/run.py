"""E3-TIR, from start to end: supervised training where asked, the warm-up with experts, then ordinary RL.

[digest] A warm-up of 50 steps on three experiences (expert prefixes, branches that go on from them, the policy's own
exploration), then RL with twice as many rollouts and no expert.

The stages of the run are ``before``, ``sft``, ``warm-up``, ``rl`` (those that are asked for) and ``after``. A killed
run goes on in the middle of each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from skillweave.base import Base
from skillweave.base.generate import context_length
from skillweave.delta import Delta
from skillweave.errors import UserError, nearest
from skillweave.files.hashes import digest
from skillweave.methods.e3tir.config import SCRIPTED, E3tirConfig, GroupSettings
from skillweave.methods.training.order import batch_order
from skillweave.methods.training.run import Run
from skillweave.methods.training.settings import AnswerSettings
from skillweave.progress import console, share_of
from skillweave.tasks import Entry, one_each_prompt
from skillweave.tasks.check import check_before
from skillweave.tasks.traces import Trace, match_traces, read_traces, scripted_traces
from skillweave.tasks.with_tools import AgentTask, ToolSettings, load_agent

if TYPE_CHECKING:
    from skillweave.methods.e3tir.traces import ExpertTrace
    from skillweave.tools.call_format import CallFormat

_SEEN = ("success", "calls", "failed_calls", "answered")


@dataclass(frozen=True)
class Material:
    """What a run learns from: a task with its tools, and an expert's traces for some of its train prompts."""

    agent: AgentTask
    traces: list[Trace]
    files: list[str]
    """Digests of the files that the tools are made of."""
    held_out: list[Trace]
    """Traces for prompts of the calibration split: the supervised training looks at its loss on them."""
    own_traces: bool
    """Whether the traces are the user's; else the task's solver made them."""

    @property
    def name(self) -> str:
        return self.agent.task.name

    @property
    def key(self) -> str:
        """A digest of the task, the tools and the traces."""
        own = self.held_out if self.own_traces else []  # what a solver makes follows from the task and the tools
        told = [[trace.id, trace.messages] for trace in [*self.traces, *own]]
        return digest([self.agent.task.key, self.agent.toolbox.schemas, self.files, told])


def run(base: Base, config: E3tirConfig, out_dir: Path) -> Delta:
    """Warm up ``base`` as an agent that uses the tools of ``config.task``; the result as a delta on it.

    The delta is saved in ``out_dir/"delta"``; ``base`` itself is not changed. Called again on the same folder after a
    kill it goes on, to the same weights as an unbroken run. Under ``torchrun`` the processes share the prompts of a
    batch, and must all see ``out_dir``. Raises :class:`UserError` where settings or files do not fit.
    """
    from skillweave.methods.training.trainer import quiet

    agent = load_agent(config.task, config.tools)
    with agent.toolbox:
        state = Run.begin("e3tir", base, config, _material(agent, config), out_dir)
        if state.finished:
            return state.delta
        check_before(agent.task, state.tokenizer, state.max_length)
        with quiet():
            facts = _Agent.begin(state).all_stages()
        return state.finish(facts, _why_nothing(state.figures, config))


def _material(agent: AgentTask, config: E3tirConfig) -> Material:
    train = one_each_prompt(agent.task.split("train"))
    looked_at = agent.task.splits.get("calibration", []) if config.sft is not None and config.sft.held_out else []
    held_out: list[Trace] = []
    own_traces = config.experts not in (None, SCRIPTED)
    if not config.asks_experts or (config.experts is None and agent.solve is None):
        traces: list[Trace] = []
    elif config.experts in (None, SCRIPTED):
        order = Random(config.seed).sample(train, len(train))
        traces = scripted_traces(agent, order[: config.traces])
        if config.sft is not None:
            held_out = scripted_traces(agent, looked_at[: config.sft.held_out])
    else:
        given = read_traces(Path(config.experts))
        found, elsewhere = match_traces(given, agent.task)
        calibration = {entry.id for entry in looked_at}
        held_out = list({trace.id: trace for trace in given if trace.id in calibration}.values())
        elsewhere -= len(held_out)
        if elsewhere:
            console.print(
                f"  {share_of(elsewhere, len(given), 'traces')} of {config.experts} are on no train prompt, and are "
                "left out",
                soft_wrap=True,
            )
        again = sum(len(of) - 1 for of in found.values())
        if again:
            console.print(
                f"  {share_of(again, len(given), 'traces')} of {config.experts} are on a prompt that has one already, "
                "and are left out",
                soft_wrap=True,
            )
        known = [of[0] for of in found.values()]  # one expert a prompt
        traces = Random(config.seed).sample(known, len(known))[: config.traces]
    if not traces and (asks := config.asks_experts):
        raise UserError(
            f"experts: {' and '.join(asks)} ask{'s' * (len(asks) == 1)} for expert traces, and there are none: name a "
            f"JSONL file of traces, or set {' and '.join(asks.values())}"
        )
    return Material(agent, traces, (config.tools or ToolSettings()).digests, held_out, own_traces)


@dataclass
class _Agent:
    """The state of the training: the task with its tools, the expert's traces as tokens."""

    run: Run[E3tirConfig, Material]
    form: CallFormat
    traces: dict[str, ExpertTrace]
    held_out_traces: list[ExpertTrace]

    @classmethod
    def begin(cls, run: Run[E3tirConfig, Material]) -> _Agent:
        """Turn the traces into tokens; what goes beyond the limits of a rollout is left out, and counted."""
        from skillweave.methods.e3tir.traces import encode_trace

        config = run.config
        for stage in (config.warm_up, config.rl):
            if stage.steps and stage.prompts % run.processes.world:
                raise UserError(
                    f"prompts {stage.prompts} does not divide over {run.processes.world} processes: each plays whole "
                    "groups"
                )
        form = config.tool_use.call_format(run.tokenizer, run.data.agent.toolbox)
        encoded = [encode_trace(form, trace) for trace in run.data.traces]
        known = run.data.agent.toolbox.names
        for name in sorted({name for trace in encoded for name in trace.names} - set(known)):
            raise UserError(
                f"experts: a trace calls the tool '{name}', which the model has not; {nearest(name, known)}"
            )
        limits = config.rollout
        kept = _within(
            run, encoded, lambda trace: len(trace.names) <= limits.max_tool_calls,
            f"make more calls than rollout.max_tool_calls ({limits.max_tool_calls}) allows",
        )  # fmt: skip

        def short(trace: ExpertTrace) -> bool:
            return len(trace.ids) <= limits.max_tokens and len(trace.prompt + trace.ids) <= run.max_length

        kept = _within(
            run, kept, short,
            f"are longer than rollout.max_tokens ({limits.max_tokens}), max_length ({config.max_length}) or the base's "
            "context allows",
        )  # fmt: skip
        held_out = [trace for trace in (encode_trace(form, trace) for trace in run.data.held_out) if short(trace)]
        return cls(run, form, {trace.id: trace for trace in kept}, held_out)

    def all_stages(self) -> dict[str, Any]:
        """All stages in their order. Returns how well it did before and after."""
        run, config = self.run, self.run.config
        before = run.stage("before", self._judge, show=_SEEN)
        if config.sft is not None:
            run.trained("sft", functools.partial(self._supervised, config.sft))
        if config.warm_up.steps:
            run.trained("warm-up", functools.partial(self._rl, config.warm_up))
        if config.rl.steps:
            run.trained("rl", functools.partial(self._rl, config.rl))
        after = run.stage("after", self._judge, show=_SEEN)
        return {"before": before, "after": after, "traces": len(self.traces), "expert_tokens": self._expert_tokens}

    @property
    def _expert_tokens(self) -> int:
        """How much an expert had to write for this run."""
        return sum(trace.written for trace in self.traces.values())

    # -- the stages --------------------------------------------------------------------------------------------------

    def _judge(self, folder: Path) -> dict[str, Any]:
        """How well the policy does on prompts of the calibration split, answered greedily."""
        from skillweave.methods.e3tir.judge import success

        run, entries = self.run, self._held_out
        if not entries:
            return {}

        def first() -> dict[str, Any]:
            model = run.policy.open_to_sample(run.config)
            return success(model, run.data.agent, self.form, entries, run.config.rollout)

        return run.processes.from_first(first)

    def _supervised(self, settings: AnswerSettings, folder: Path) -> dict[str, Any]:
        from skillweave.methods.e3tir.traces import supervised_rows
        from skillweave.methods.training.sft import train_on_rows

        rows, held_out = (supervised_rows(traces) for traces in (list(self.traces.values()), self.held_out_traces))
        return train_on_rows(self.run, folder, settings, rows, held_out)

    def _rl(self, stage: GroupSettings, folder: Path) -> dict[str, Any]:
        """The warm-up (groups with experts, on prompts that have a trace) or ordinary RL (on all train prompts)."""
        from skillweave.methods.e3tir.follow import CUT_OFF, EQUAL, Follow
        from skillweave.methods.e3tir.rollouts import Rollouts, in_turn
        from skillweave.methods.e3tir.trainer import AgentTrainer

        run, config = self.run, self.run.config
        entries = self._asked(stage)
        context = context_length(run.base.model)
        rollouts = Rollouts(
            run.data.agent, self.form, entries, self.traces, config, stage, name=folder.name, context=context
        )
        follow = Follow(run, self.form, self._held_out, folder, stage)

        def make(model: Any, arguments: dict[str, Any]) -> AgentTrainer:
            # All prompts have their turn before one comes again.
            order = batch_order([0] * len(entries), stage.prompts, stage.steps, arguments["seed"])
            turns = in_turn([entries[index].id for index in order], stage.prompts)
            trainer = AgentTrainer(
                model, run.tokenizer, follow.arguments(arguments), turns, rollouts, config, stage, shown=follow.show,
                callbacks=[follow],
            )  # fmt: skip
            follow.trainer = trainer
            return trainer

        figures = run.fit(folder, stage.training, stage.steps * stage.updates, make)
        equal, cut_off = follow.means.get(EQUAL, 0.0), follow.means.get(CUT_OFF, 0.0)
        if equal:
            run.say(
                f"{folder.name}: equal rewards in {equal:.0%} of the groups: no conversation was better than "
                "another there, so those groups taught nothing"
            )
        if cut_off:
            run.say(
                f"{folder.name}: {cut_off:.0%} of the policy's conversations were cut off at rollout.max_tokens="
                f"{config.rollout.max_tokens} (or at the base's context), without an answer; they are learnt from as "
                "such, with no end behind them. Raise rollout.max_tokens if their share is high"
            )
        figures |= {"equal_groups": equal, "cut_off": cut_off, "mean_reward": follow.means.get("reward", 0.0)}
        return {**figures, "sampled_tokens": follow.sampled, "expert_tokens": self._expert_tokens if stage.m else 0}

    def _asked(self, stage: GroupSettings) -> list[Entry]:
        """The prompts of a stage: those with a trace where it needs one, else all that leave room for an answer."""
        train = one_each_prompt(self.run.data.agent.task.split("train"))
        if stage.m:
            return [entry for entry in train if entry.id in self.traces]
        return self._short_enough(train)

    @functools.cached_property
    def _held_out(self) -> list[Entry]:
        task = self.run.data.agent.task
        count = self.run.config.evaluate_on
        return (
            self._short_enough(one_each_prompt(task.split("calibration"))[:count])
            if count and task.sizes["calibration"]
            else []
        )

    def _short_enough(self, entries: list[Entry]) -> list[Entry]:
        """The entries whose prompt leaves room for an answer; the others are counted."""
        short = [entry for entry in entries if len(self.form.prompt_ids(entry.prompt)) < self.run.max_length]
        if not short:
            raise UserError(
                f"every prompt is longer than {self.run.max_length} tokens (max_length, or the base's context), with "
                "what tells the model of its tools"
            )
        self.run.tell_too_long(self.run.data.name, len(entries) - len(short), len(entries), "prompts")
        return short


def _why_nothing(stages: dict[str, dict[str, Any]], config: E3tirConfig) -> str:
    """Why no stage changed a weight, if none did, and what to do. ``stages``: the figures of each."""
    flat = {name: found for name, found in stages.items() if found.get("equal_groups") == 1}
    if not flat:
        return "no step of any stage had a gradient"
    rewards = ", ".join(f"{name}: mean reward {found['mean_reward']:.3g}" for name, found in flat.items())
    cut_off = max(found["cut_off"] for found in flat.values())
    cause = (
        f"; {cut_off:.0%} of the conversations were cut off at rollout.max_tokens={config.rollout.max_tokens}: raise it"
        if cut_off >= 0.5
        else ""
    )
    return (
        f"all rewards were equal in every group ({rewards}), so no conversation was better than "
        f"another and no weight was changed{cause}. Take easier prompts (or harder ones, where all were right), more "
        "conversations a prompt (n) or a higher rollout.temperature, or teach the calls first, with sft or with a "
        "warm_up on an expert's traces"
    )


def _within(
    run: Run[Any, Any], traces: list[ExpertTrace], fits: Callable[[ExpertTrace], bool], beyond: str
) -> list[ExpertTrace]:
    """The traces that fit; the others, which are ``beyond`` a limit, are counted. Raises where none is left."""
    kept = [trace for trace in traces if fits(trace)]
    if traces and not kept:
        raise UserError(f"all {len(traces)} traces {beyond}")
    if len(kept) < len(traces):
        run.say(f"{share_of(len(traces) - len(kept), len(traces), 'traces')} {beyond}, and are left out")
    return kept
