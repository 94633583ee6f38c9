"""A model of this process: one pack of a weave, behind the asynchronous engine that many models share."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256

from skillweave.base import Sampling
from skillweave.base.safetensors_io import tensor_bytes
from skillweave.base.template import has_template
from skillweave.engine import AsyncEngine, RequestCancelled
from skillweave.errors import UserError
from skillweave.files.hashes import digest
from skillweave.reason.models.model import Completion, ModelCall, ModelUnreachable
from skillweave.weave import AUTO, BASE, Router, Weave, is_int8


class LocalModel:
    """Answers calls with a pack of the engine's weave (None: the plain base; ``AUTO``: the router's choice).

    The engine stays open when the model is closed, because other models may share it. ``identity`` is that of
    :func:`local_identity`. Raises :class:`UserError` if the pack is unknown or not loaded, or if there is no router.
    """

    def __init__(self, engine: AsyncEngine, pack: str | None, *, identity: str) -> None:
        if pack == AUTO:
            engine.weave.route([])
        else:
            engine.weave.choose([""], [pack])
        self._engine = engine
        self._pack = pack
        self._identity = identity

    @property
    def identity(self) -> str:
        """What decides its answers beside the call."""
        return self._identity

    async def complete(self, call: ModelCall) -> Completion:
        """Answer one call.

        Raises :class:`ModelUnreachable` if the prompt does not fit into the context, if the pack gives NaN, and if the
        engine is closed before the answer is complete.
        """
        sampling = Sampling(max_new_tokens=call.max_tokens, temperature=call.temperature, seed=call.seed)
        try:
            reply = await self._engine.submit(self._prompt(call), self._pack, sampling).reply()
        except (UserError, RequestCancelled) as error:
            raise ModelUnreachable(str(error)) from error
        return Completion(
            reply.text,
            "stop" if reply.ended == "answer" else "length",
            reply.prompt_tokens,
            reply.completion_tokens,
        )

    async def close(self) -> None:
        """Do nothing: the engine is closed by the one who opened it."""

    def _prompt(self, call: ModelCall) -> str | list[dict[str, str]]:
        # The router reads a prompt with the tokenizer of the base.
        tokenizer = self._engine.weave.voice(None if self._pack == AUTO else self._pack).tokenizer
        if has_template(tokenizer):
            return [{"role": role, "content": content} for role, content in call.messages]
        return "\n\n".join(content for _, content in call.messages)


def local_identity(weave: Weave, pack: str | None) -> str:
    """Return what decides the answers of a pack (None: the plain base; ``AUTO``: the router's choice) beside the call.

    It is made from the fingerprint of the base, its dtype, whether its layers are in int8, its chat template and end
    tokens, and the digest of the pack; with ``AUTO`` from those of all loaded packs and of the router. The names of
    folders do not count, so an answer is found again after the weave has been moved.
    """
    base = weave.base
    form: dict[str, object] = {"backbone": "int8"} if is_int8(base) else {}
    about: dict[str, object] = {
        **form,
        "dtype": str(base.model.dtype),
        "template": getattr(base.tokenizer, "chat_template", None),
        "ends": weave.voice(None).stops(base.model),
    }
    if pack == AUTO:
        about["packs"] = {name: weave.shelf.digest(name) for name in weave.loaded}
        about["router"] = None if weave.router is None else _router_digest(weave.router)
    elif pack is not None:
        about["pack"] = weave.shelf.digest(pack)
    return f"local {base.fingerprint} {pack or BASE} {digest(about)}"


def _router_digest(router: Router) -> str:
    """Return a digest of all values that decide where the router sends a prompt."""
    values = {name: value for name, value in asdict(router).items() if name != "figures"}
    tensors = {
        name: sha256(tensor_bytes(values.pop(name))).hexdigest() for name in ("weight", "bias", "mean", "spread")
    }
    return digest([values, tensors])
