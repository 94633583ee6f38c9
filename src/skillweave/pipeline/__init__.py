"""Build a weave from ``weave.yaml`` in steps; each step is done once, and resumed after a kill."""

from skillweave.pipeline.config import SkillConfig, WeaveConfig, read_weave_config
from skillweave.pipeline.plan import PlannedStep, plan_build
from skillweave.pipeline.run import build

__all__ = ["PlannedStep", "SkillConfig", "WeaveConfig", "build", "plan_build", "read_weave_config"]
