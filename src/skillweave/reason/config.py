"""The settings of a run of `skillweave reason`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from skillweave.config import Config
from skillweave.reason.agents.team import AgentSettings, Role
from skillweave.reason.budget import Budget
from skillweave.reason.search.methods import SEARCH_METHODS, method_named


class ReasonConfig(Config):
    """What is searched, by which method, with which models, within which budget."""

    tasks: str = Field(description="problems: a JSONL or JSON file, a folder of ARC tasks, or reasoning-gym:NAME")
    limit: int | None = Field(default=None, ge=1, description="only so many problems, the first ones")
    out: Path = Field(description="the run's folder")
    model: str = Field(
        description="who answers the agents: URL#NAME (a server), or a model, delta, pack or weave; WEAVE#PACK"
    )
    agent_models: dict[Role, str] = Field(default_factory=dict, description="another model for some of the agents")
    method: str = Field(default="matsir", description=f"one of: {', '.join(SEARCH_METHODS)}")
    settings: dict[str, Any] = Field(default_factory=dict, description="the settings of the method")
    budget: Budget = Field(default=Budget(), description="what each problem may use")
    prompts: str = Field(default="general", description="general, induction, or a folder of templates")
    agents: AgentSettings = Field(default=AgentSettings(), description="how the agents are asked")
    seed: int = Field(default=0, ge=0, description="the seed of all draws")
    at_once: int = Field(default=64, ge=1, description="problems that are searched at the same time")
    parallel: int = Field(default=4, ge=1, description="expansions in flight for each problem")
    votes: int = Field(
        default=1, ge=1, description="a search goes on until so many programs solve all examples, and these vote"
    )
    probes: int = Field(default=16, ge=0, description="made-up inputs on which the behaviour of programs is compared")
    concurrency: int = Field(default=16, ge=1, description="requests to a server at the same time")
    timeout: float = Field(default=120.0, gt=0, description="seconds that a request to a server may take")
    retries: int = Field(default=5, ge=0, description="how often a failed request is tried again")
    base: str | None = Field(default=None, description="the base of an artefact, if it is in another place")
    dtype: str | None = Field(default=None, description="dtype of the local engine's weights")
    device: str | None = Field(default=None, description="where the local engine computes")
    batch_size: int = Field(default=32, ge=1, description="requests that share a step of the local engine")
    watch: Literal["bar", "tree", "none"] = Field(
        default="bar", description="what the terminal shows: a bar, the search tree, or nothing"
    )

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        method_named(method)
        return method
