"""The bundled weave.yaml is valid and keeps its promises. `make demo` builds it on the real model."""

from __future__ import annotations

from skillweave.config import read_config
from skillweave.demo.run import PER_SKILL, STEP_SECONDS, demo_config
from skillweave.methods import get_method
from skillweave.pipeline.steps import ARMS
from skillweave.tasks import load_task


def test_the_demo_file_is_valid_down_to_every_method_setting() -> None:
    config = demo_config()
    assert len(config.skills) == 3
    assert PER_SKILL * len(config.skills) == 6
    for name, skill in config.skills.items():
        settings = config.method_config(name)
        assert settings == read_config(get_method(skill.method).config, settings.model_dump(mode="json"))
        assert config.zip_config(name).ratio == 1 / 256
        task = load_task(skill.task)
        assert len(task.split("test")) >= (config.score.limit or 0)


def test_overrides_reach_the_demo() -> None:
    assert demo_config(["zip.ratio=1/64", "seed=3"]).zip.ratio == 1 / 64


def test_every_step_of_the_demo_has_its_share_of_the_estimate() -> None:
    own = ["delta", "pack", *(f"score-{arm}" for arm in ARMS)]
    steps = {f"{skill}/{step}" for skill in demo_config().skills for step in own}
    assert set(STEP_SECONDS) == steps | {"weave/router", "weave/woven", "weave/confusion", "weave/speed"}
