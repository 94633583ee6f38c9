"""The team: asks the agents, reads what they answer, has it repaired once, and counts what that costs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

from pydantic import Field

from skillweave.base.thoughts import strip_thoughts
from skillweave.config import Config
from skillweave.errors import UserError
from skillweave.reason.agents import read_answer
from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.agents.prompt_values import (
    failure_texts,
    literal_text,
    pair_texts,
    program_texts,
    rule_texts,
)
from skillweave.reason.agents.read_answer import ReadProgram, UnreadableAnswer
from skillweave.reason.budget import BudgetSpent, Meter
from skillweave.reason.hypothesis import Evaluation, Hypothesis, Judgement, Note, Proposal
from skillweave.reason.models.model import Completion, Model, ModelCall
from skillweave.reason.problem import ExamplePairs, Missing, Value
from skillweave.reason.trace import AgentCounts

Role = Literal["proposer", "refiner", "critic", "coder", "judge", "answerer"]
ROLES: tuple[Role, ...] = get_args(Role)

T = TypeVar("T")


class AgentSettings(Config):
    """How the agents are asked."""

    form: Literal["program", "rule"] = Field(
        default="program",
        description="`program`: proposer and refiner write the function at once; `rule`: they write the rule in words, "
        "and the coder turns it into a function, which is one more call",
    )
    temperature: float = Field(default=1.0, ge=0, le=2, description="temperature of every call")
    max_tokens: int = Field(default=512, ge=1, description="most tokens of one answer, thoughts included")


def all_roles(model: Model) -> dict[Role, Model]:
    """One model for every role."""
    return dict.fromkeys(ROLES, model)


class AgentTeam:
    """The agents that work on one problem.

    Each method names its call by ``key``, which is unique within the problem ("propose/3"): with the seed and the name
    of the problem it decides the draws. Calls of different keys may be in flight at once. All methods raise
    :class:`BudgetSpent` if there is no room for their first call, and
    :class:`~skillweave.reason.models.model.ModelUnreachable` if the model cannot be reached.
    """

    def __init__(
        self,
        examples: ExamplePairs,
        models: Mapping[Role, Model],
        prompts: PromptSet,
        settings: AgentSettings,
        meter: Meter,
        seed: int,
    ) -> None:
        self.examples = examples
        self.meter = meter
        self.counts: dict[str, AgentCounts] = {}
        """what each role did; a role that was never asked is missing"""
        self._models = models
        self._prompts = prompts
        self._settings = settings
        self._seed = seed
        self._pairs = pair_texts(examples)

    def seed_of(self, key: str) -> int:
        """The seed of the draws that ``key`` names: below 2**31, because some servers take no larger one."""
        text = json.dumps([self._seed, self.examples.name, key])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    async def propose(self, key: str, avoid: Sequence[Hypothesis] = ()) -> Proposal:
        """A new hypothesis, unlike those in ``avoid``."""
        return await self._hypothesis("proposer", key, "propose", {"avoid": self._texts(avoid)})

    async def refine(
        self,
        key: str,
        hypothesis: Hypothesis,
        evaluation: Evaluation,
        note: Note | None = None,
        failed: Sequence[Hypothesis] = (),
    ) -> Proposal:
        """A better hypothesis, from what the old one gives for the training pairs.

        ``note`` is the critic's; ``failed`` are the hypotheses that were made from the old one and did not help.
        """
        values = self._failing(hypothesis, evaluation) | {
            "note": note.text if note else "",
            "failed": self._texts(failed),
        }
        return await self._hypothesis("refiner", key, "refine", values)

    async def criticise(self, key: str, hypothesis: Hypothesis, evaluation: Evaluation) -> Note | None:
        """Why a hypothesis fails; None if the answer could not be read."""
        note = await self._ask(
            "critic",
            key,
            "criticise",
            self._failing(hypothesis, evaluation),
            lambda text: read_answer.read_note(text, len(self._pairs)),
            read_answer.NOTE_FORM,
        )
        return None if isinstance(note, _Failure) else note

    async def code(self, key: str, rule: str) -> Proposal:
        """A program for a rule in words."""
        read = await self._ask("coder", key, "code", {"rule": rule}, read_answer.read_program, read_answer.CODE_FORM)
        if isinstance(read, _Failure):
            return Proposal(None, read.why)
        self._note_renamed("coder", read)
        return Proposal(Hypothesis(rule, read.program))

    async def judge(self, key: str, hypothesis: Hypothesis, parent: Hypothesis | None) -> Judgement | None:
        """The judge's opinion of a rule that cannot be executed; None if the answer could not be read."""
        values = {"rule": hypothesis.rule, "parent": parent.rule if parent else ""}
        judgement = await self._ask(
            "judge", key, "judge", values, read_answer.read_judgement, read_answer.JUDGEMENT_FORM
        )
        return None if isinstance(judgement, _Failure) else judgement

    async def answer(self, key: str, input: Value) -> Value | Missing:
        """The output for an input, without a rule."""
        texts = all(isinstance(pair.output, str) for pair in self.examples.pairs)
        output = await self._ask(
            "answerer",
            key,
            "answer",
            {"input": literal_text(input)},
            lambda text: read_answer.read_output(text, texts=texts),
            read_answer.OUTPUT_FORM,
        )
        return Missing(output.why) if isinstance(output, _Failure) else output

    async def concepts(self, key: str, count: int, avoid: Sequence[str] = ()) -> list[str]:
        """Distinct rules in words, at most ``count``, unlike those in ``avoid``.

        One call lists them all. A set with an empty prompt ``concepts`` asks for one rule in each call. An answer that
        cannot be read gives none.
        """
        if self._prompts.lists_concepts:
            values = {"avoid": list(avoid), "count": count}
            rules = await self._ask("proposer", key, "concepts", values, read_answer.read_rules, read_answer.RULES_FORM)
            found = [] if isinstance(rules, _Failure) else rules
        else:
            found = []
            for number in range(count):
                values = {"avoid": [*avoid, *found]}
                try:
                    rule = await self._ask(
                        "proposer",
                        f"{key}/{number}",
                        "propose_rule",
                        values,
                        read_answer.read_rule,
                        read_answer.RULE_FORM,
                    )
                except BudgetSpent:
                    break
                found += [] if isinstance(rule, _Failure) else [rule]
        return [rule for rule in dict.fromkeys(found) if rule not in avoid][:count]

    async def _hypothesis(self, role: Role, key: str, verb: str, values: dict[str, Any]) -> Proposal:
        """The answer of proposer or refiner as a hypothesis, in the form that the settings name.

        In the form ``rule``, a rule whose program cannot be had is a hypothesis without a program, with the reason.
        """
        if self._settings.form == "program":
            read = await self._ask(
                role, key, f"{verb}_program", values, read_answer.read_program, read_answer.PROGRAM_FORM
            )
            if isinstance(read, _Failure):
                return Proposal(None, read.why)
            self._note_renamed(role, read)
            return Proposal(Hypothesis(read.rule, read.program))
        rule = await self._ask(role, key, f"{verb}_rule", values, read_answer.read_rule, read_answer.RULE_FORM)
        if isinstance(rule, _Failure):
            return Proposal(None, rule.why)
        try:
            coded = await self.code(f"{key}/code", rule)
        except BudgetSpent:
            return Proposal(Hypothesis(rule, ""), "the budget left no call for the coder")
        return coded if coded.hypothesis else Proposal(Hypothesis(rule, ""), coded.failure)

    def _texts(self, hypotheses: Sequence[Hypothesis]) -> list[str]:
        form = program_texts if self._settings.form == "program" else rule_texts
        return form(list(hypotheses))

    def _failing(self, hypothesis: Hypothesis, evaluation: Evaluation) -> dict[str, Any]:
        return {
            "rule": hypothesis.rule,
            "program": hypothesis.program,
            "failures": failure_texts(self.examples, evaluation),
        }

    async def _ask(
        self, role: Role, key: str, template: str, values: dict[str, Any], read: Callable[[str], T], wanted: str
    ) -> T | _Failure:
        """What ``read`` finds in the answer to a prompt, or in its repair; else the reason why it finds nothing."""
        prompt = self._prompts.render(template, pairs=self._pairs, **values)
        messages: tuple[tuple[str, str], ...] = (("user", prompt),)
        completion = await self._complete(role, key, messages)
        try:
            return read(completion.text)
        except UnreadableAnswer as error:
            why = self._reason(error, completion)
        if self._prompts.repairs:
            answer = strip_thoughts(completion.text).strip() or "(no answer)"
            repair = self._prompts.render("repair", answer=answer, reason=why, wanted=wanted)
            try:
                completion = await self._complete(
                    role, f"{key}/repair", (*messages, ("assistant", answer), ("user", repair))
                )
                value = read(completion.text)
            except BudgetSpent:
                why += "; the budget left no call for a repair"
            except UnreadableAnswer as error:
                why += f"; after a repair: {self._reason(error, completion)}"
            else:
                self._count(role, repaired=1)
                return value
        self._count(role, failed=1)
        return _Failure(why)

    async def _complete(self, role: Role, key: str, messages: tuple[tuple[str, str], ...]) -> Completion:
        model = self._models.get(role)
        if model is None:
            raise UserError(f"no model is given for the {role}: name one for it, or one for all roles")
        settings = self._settings
        call = ModelCall(messages, settings.temperature, settings.max_tokens, self.seed_of(key))
        if not self.meter.reserve():
            raise BudgetSpent
        try:
            completion = await model.complete(call)
        except UserError:  # ModelUnreachable, or a server that refuses the call; a cancelled call is paid, so it counts
            self.meter.release()
            raise
        self.meter.charge(completion.tokens)
        self._count(role, calls=1, tokens=completion.tokens, cut_off=int(completion.ended == "length"))
        return completion

    def _reason(self, error: UnreadableAnswer, completion: Completion) -> str:
        cut = completion.ended == "length"
        return f"{error}; it was cut off at {self._settings.max_tokens} tokens" if cut else str(error)

    def _note_renamed(self, role: Role, read: ReadProgram) -> None:
        if read.renamed:
            self._count(role, renamed=1)

    def _count(self, role: Role, **more: int) -> None:
        counts = self.counts.get(role, AgentCounts())
        self.counts[role] = counts.model_copy(
            update={name: getattr(counts, name) + number for name, number in more.items()}
        )


class _Failure:
    """In place of what an answer holds: it could not be read."""

    def __init__(self, why: str) -> None:
        self.why = why
