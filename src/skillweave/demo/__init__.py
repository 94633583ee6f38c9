"""The main job on a real model: three skills for SmolLM2-135M, built, then asked in one mixed batch."""

from skillweave.demo.run import MixedAnswer, build_demo, mixed_answers

__all__ = ["MixedAnswer", "build_demo", "mixed_answers"]
