"""Many packs on one base: the packed model (each row of a batch has its own pack), the router, the weave folder."""

from typing import TYPE_CHECKING

from skillweave.lazy import lazily

if TYPE_CHECKING:
    from skillweave.weave.card import WeaveCard, is_weave, read_card
    from skillweave.weave.int8_backbone import is_int8, put_into_int8
    from skillweave.weave.packed_model import PackedModel
    from skillweave.weave.request import AUTO, Conversation, Reply, Request
    from skillweave.weave.router import BASE, Route, Router, background_prompts, check_layer, fit_router
    from skillweave.weave.weave import Weave

__getattr__ = lazily(
    __name__,
    {
        "card": "WeaveCard is_weave read_card",
        "router": "BASE Route Router background_prompts check_layer fit_router",
        "request": "AUTO Conversation Reply Request",
        "weave": "Weave",
        "int8_backbone": "is_int8 put_into_int8",
        "packed_model": "PackedModel",
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
    "is_int8",
    "is_weave",
    "put_into_int8",
    "read_card",
]
