"""The main job on a real model: build three skills for SmolLM2-135M, then answer one mixed batch with them."""

from skillweave.demo.run import MixedAnswer, build_demo, mixed_answers

__all__ = ["MixedAnswer", "build_demo", "mixed_answers"]
