"""Write the folder of a weave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from skillweave.artefact import atomic_folder, write_json
from skillweave.base import Base
from skillweave.delta import Delta
from skillweave.files.hashes import sha256_file
from skillweave.pack import BaseRef, Skillpack
from skillweave.weave.backbone import check_backbone, save_backbone
from skillweave.weave.card import WEAVE_FILE, BackboneRef, WeaveCard
from skillweave.weave.int8_backbone import check_form
from skillweave.weave.parts import check_names, put_pack
from skillweave.weave.router import Router


def write_weave(
    folder: str | Path,
    base: Base,
    packs: Mapping[str, str | Path | Skillpack],
    router: Router | None = None,
    *,
    backbone: Delta | str | Path | None = None,
    backbone_codes: str | None = None,
    dtype: str | None = None,
    budget: int | None = None,
) -> Path:
    """Write a weave: ``weave.json``, ``packs/<name>/``, ``router/`` and, if there is a backbone, ``backbone/``.

    The whole folder is replaced, atomically.

    - ``base``: the model that the packs belong on and that the router was fitted on
    - ``packs``: a :class:`Skillpack` or its folder for each name; it is saved under that name
    - ``backbone``: if a delta made ``base``, this delta or its folder (copied byte for byte). The weave then names
      the base that the delta names, and needs no files of the tuned model.
    - ``backbone_codes``, ``dtype``, ``budget`` (bytes): the defaults of ``Weave.from_pretrained`` for this weave; the
      first is its ``backbone``, "int8" or None

    Raises :class:`UserError` if a pack belongs on another base, if the router knows a pack that is not given, or if
    the delta makes another model than ``base``.
    """
    check_names(packs)
    check_form(backbone_codes)
    if router is not None:
        router.check_fits(packs, base)
    named, tuned = BaseRef(ref=base.ref, fingerprint=base.fingerprint), None
    if backbone is not None:
        delta = backbone if isinstance(backbone, Delta) else Delta.from_pretrained(backbone)
        named, tuned = check_backbone(delta, base), BackboneRef(fingerprint=base.fingerprint)
    card = WeaveCard(
        base=named,
        backbone=tuned,
        packs=list(packs),
        router=router is not None,
        backbone_codes=backbone_codes,
        dtype=dtype,
        budget=budget,
    )
    with atomic_folder(folder) as temporary:
        for name, given in packs.items():
            put_pack(given, name, base.fingerprint, temporary / "packs" / name)
        if router is not None:
            router.save(temporary / "router")
        if backbone is not None:
            save_backbone(backbone, temporary)
        card.files = {part: sha256_file(temporary / part) for part in card.parts()}
        write_json(temporary / WEAVE_FILE, card.model_dump(mode="json"))
    return Path(folder)
