"""The woven model: many packs on one base, a row of a batch each its own; the router; the folder that is served."""

from skillweave.weave.converse import ToolReply, converse_with
from skillweave.weave.linear import grouped_delta
from skillweave.weave.router import BASE, Route, Router, background_prompts, check_layer, fit_router
from skillweave.weave.weave import AUTO, Reply, Weave, WeaveCard, is_weave, read_card
from skillweave.weave.woven import Woven

__all__ = [
    "AUTO",
    "BASE",
    "Reply",
    "Route",
    "Router",
    "ToolReply",
    "Weave",
    "WeaveCard",
    "Woven",
    "background_prompts",
    "check_layer",
    "converse_with",
    "fit_router",
    "grouped_delta",
    "is_weave",
    "read_card",
]
