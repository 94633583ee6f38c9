"""Specialise: learn one domain from the base's own answers and a verifier, as one delta (SkillWeave, stage 1)."""

from skillweave.methods.specialise.config import SpecialiseConfig

__all__ = ["SpecialiseConfig"]
