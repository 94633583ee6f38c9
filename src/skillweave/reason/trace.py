"""The record of one search: its tree, its result and what it cost. Written to the run's folder, drawn by the page."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from skillweave.reason.solution import Ended

Action = Literal["root", "propose", "refine", "answer"]
State = Literal["open", "solved", "equal", "dominated", "failed"]
"""``equal``: it behaves like ``equal_to``; ``dominated``: another node solves all its pairs and more; ``failed``: the
agent's answer held no program that could be read."""


class Record(BaseModel):
    """The base class of what a search writes down: unknown keys are errors, and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TracedNode(Record):
    """One node of the tree. Node 0 is the root: the problem with no hypothesis."""

    number: int = Field(ge=0, description="in the order in which nodes were made")
    parent: int | None = Field(description="the node that it was refined from; None for the root")
    action: Action = Field(description="how it was made")
    rule: str = Field(default="", description="the rule in words")
    program: str = Field(default="", description="the rule as a Python function")
    outcomes: list[str] = Field(default_factory=list, description="what it gives for each training pair, as text")
    ran: bool = Field(default=False, description="whether it gave a value for every training pair")
    solved: list[bool] = Field(default_factory=list, description="whether each training pair is solved")
    coherent: float = Field(default=0.0, description="share of training pairs that are solved")
    enriched: float = Field(default=0.0, description="the second reward")
    reward: float = Field(default=0.0, description="w * coherent + (1 - w) * enriched")
    visits: int = Field(default=0, description="how often the search passed through it")
    mean: float = Field(default=0.0, description="mean reward of the searches that passed through it")
    best: float = Field(default=0.0, description="highest reward at it or below it")
    state: State = Field(default="open", description="whether the search may still continue from it")
    equal_to: int | None = Field(default=None, description="the node that it behaves like, or that dominates it")
    backtracked: bool = Field(default=False, description="the search gave up below it and went back to an ancestor")
    note: str = Field(default="", description="the critic's note")
    failure: str = Field(default="", description="why the agent's answer could not be used")
    calls: int = Field(default=0, description="calls used when it was made")
    tokens: int = Field(default=0, description="tokens used when it was made")


class TracedPair(Record):
    """One pair as text, for the page."""

    input: str = Field(description="the input, as JSON")
    output: str = Field(description="the output, as JSON")


class TracedTest(Record):
    """One test input and what was answered, written after the search has ended."""

    input: str = Field(description="the test input, as JSON")
    predicted: str = Field(description="the answer, as JSON, or why there is none")
    right: bool = Field(description="whether the answer is right")


class TracedCheckpoint(Record):
    """How good the answer would have been if the search had ended after so many calls."""

    calls: int = Field(description="calls used")
    tokens: int = Field(description="tokens used")
    coherent: float = Field(description="share of training pairs solved by the best program")
    raw: float = Field(description="share of test pairs that are right")
    task: float = Field(description="1 if all test pairs are right")


class AgentCounts(Record):
    """What one agent did."""

    calls: int = Field(default=0, description="completions, repairs included")
    tokens: int = Field(default=0, description="tokens of prompts and completions")
    repaired: int = Field(default=0, description="answers that could be read after one repair")
    failed: int = Field(default=0, description="answers that could not be read, repair included")
    cut_off: int = Field(default=0, description="completions that were cut off at the token limit")
    renamed: int = Field(default=0, description="programs whose only function had another name than f, and was taken")


class SearchTrace(Record):
    """The record of the search for one problem."""

    problem: str = Field(description="the name of the problem")
    family: str = Field(default="", description="its family")
    method: str = Field(description="the method")
    seed: int = Field(description="the seed of the run")
    pairs: list[TracedPair] = Field(description="the training pairs")
    nodes: list[TracedNode] = Field(description="the tree, in the order in which nodes were made")
    ended: Ended = Field(description="why the search ended")
    answer: list[int] = Field(default_factory=list, description="the nodes whose programs gave the answer")
    calls: int = Field(description="calls used, those of direct answers included")
    tokens: int = Field(description="tokens used")
    seconds: float = Field(description="wall-clock seconds")
    agents: dict[str, AgentCounts] = Field(default_factory=dict, description="what each agent did")
    tests: list[TracedTest] = Field(default_factory=list, description="the test pairs, after the search")
    course: list[TracedCheckpoint] = Field(default_factory=list, description="how good the answer was on the way")
    raw: float = Field(default=0.0, description="share of test pairs that are right")
    task: float = Field(default=0.0, description="1 if all test pairs are right")
