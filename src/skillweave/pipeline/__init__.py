"""From ``weave.yaml`` to a folder that can be served: the steps, each done once and resumed after a kill."""

from skillweave.pipeline.config import SkillConfig, WeaveConfig, read_weave_config
from skillweave.pipeline.plan import PlannedStep, plan_build
from skillweave.pipeline.run import build

__all__ = ["PlannedStep", "SkillConfig", "WeaveConfig", "build", "plan_build", "read_weave_config"]
