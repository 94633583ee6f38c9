"""TPAW: alignment by self-play against a team of past selves, from supervised data alone."""

from skillweave.methods.tpaw.config import TpawConfig
from skillweave.methods.tpaw.loss import dpo_loss, spin_loss, team_loss, tspin_loss

__all__ = ["TpawConfig", "dpo_loss", "spin_loss", "team_loss", "tspin_loss"]
