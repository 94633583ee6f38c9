"""The woven model: many packs on one base, a row of a batch each its own; the router; the folder that is served."""

from typing import TYPE_CHECKING

from skillweave.lazy import lazily

if TYPE_CHECKING:
    from skillweave.weave.card import WeaveCard, is_weave, read_card
    from skillweave.weave.converse import ToolReply, converse_with
    from skillweave.weave.linear import grouped_delta
    from skillweave.weave.packed_model import PackedModel
    from skillweave.weave.router import BASE, Route, Router, background_prompts, check_layer, fit_router
    from skillweave.weave.weave import AUTO, Reply, Weave

__getattr__ = lazily(
    __name__,
    {
        "card": "WeaveCard is_weave read_card",
        "converse": "ToolReply converse_with",
        "linear": "grouped_delta",
        "router": "BASE Route Router background_prompts check_layer fit_router",
        "weave": "AUTO Reply Weave",
        "packed_model": "PackedModel",
    },
)

__all__ = [
    "AUTO",
    "BASE",
    "PackedModel",
    "Reply",
    "Route",
    "Router",
    "ToolReply",
    "Weave",
    "WeaveCard",
    "background_prompts",
    "check_layer",
    "converse_with",
    "fit_router",
    "grouped_delta",
    "is_weave",
    "read_card",
]
