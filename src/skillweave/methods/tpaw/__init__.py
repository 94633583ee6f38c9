"""TPAW: align by playing in a team of past selves, from supervised data alone."""

from skillweave.methods.tpaw.config import TpawConfig
from skillweave.methods.tpaw.loss import dpo_loss, spin_loss, team_loss, tspin_loss
from skillweave.methods.tpaw.run import run

__all__ = ["TpawConfig", "dpo_loss", "run", "spin_loss", "team_loss", "tspin_loss"]
