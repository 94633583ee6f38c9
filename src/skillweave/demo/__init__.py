"""The main job on a real model: build three skills for SmolLM2-135M, answer one mixed batch with them, serve them."""

from skillweave.demo.run import MixedAnswer, build_demo, mixed_answers
from skillweave.demo.served import ServedAnswer, served_answers

__all__ = ["MixedAnswer", "ServedAnswer", "build_demo", "mixed_answers", "served_answers"]
