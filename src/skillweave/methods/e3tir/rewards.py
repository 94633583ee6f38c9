"""What a conversation is worth, in parts."""

from __future__ import annotations

from skillweave.methods.e3tir.config import RewardSettings
from skillweave.tools.conversation import Episode


def reward_parts(episode: Episode, score: float, settings: RewardSettings) -> dict[str, float]:
    """``answer``, ``format`` and ``tools``, which add up to the reward. ``score`` in [0, 1] is the verifier's, 0 where
    there is no answer.

    A bad format takes the place of what the answer is worth, as in Tool-Star [relative]: the worse one counts. For
    ``tools`` count the names of the calls that gave a result; those in an expert's prefix are taken to have done so.
    """
    bad = [0.0]
    if episode.answer is None:
        bad.append(settings.no_answer)
    if any(outcome.fault in ("malformed", "unknown tool") for outcome in episode.outcomes):
        bad.append(settings.malformed)
    worst = min(bad)
    if worst < 0:
        return {"answer": 0.0, "format": worst, "tools": 0.0}
    several = score == 1 and len(set(episode.names)) > 1
    return {"answer": settings.right * score, "format": 0.0, "tools": settings.several_tools if several else 0.0}
