"""The packed model (many packs on one base, each row of a batch with its own), the router, and the weave's folder."""

from typing import TYPE_CHECKING

from skillweave.lazy import lazily

if TYPE_CHECKING:
    from skillweave.weave.card import WeaveCard, is_weave, read_card
    from skillweave.weave.packed_model import PackedModel
    from skillweave.weave.request import AUTO, Conversation, Reply, Request
    from skillweave.weave.router import BASE, Route, Router, background_prompts, check_layer, fit_router
    from skillweave.weave.weave import Weave

__getattr__ = lazily(
    __name__,
    {
        "card": "WeaveCard is_weave read_card",
        "packed_model": "PackedModel",
        "request": "AUTO Conversation Reply Request",
        "router": "BASE Route Router background_prompts check_layer fit_router",
        "weave": "Weave",
    },
)

__all__ = [
    "AUTO",
    "BASE",
    "Conversation",
    "PackedModel",
    "Reply",
    "Request",
    "Route",
    "Router",
    "Weave",
    "WeaveCard",
    "background_prompts",
    "check_layer",
    "fit_router",
    "is_weave",
    "read_card",
]
