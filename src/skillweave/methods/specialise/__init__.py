"""Specialise: one domain's verifier and the base's own answers make one delta (SkillWeave, stage 1)."""

from skillweave.methods.specialise.config import SpecialiseConfig
from skillweave.methods.training.pairs import Pair, make_pairs

__all__ = ["Pair", "SpecialiseConfig", "make_pairs"]
