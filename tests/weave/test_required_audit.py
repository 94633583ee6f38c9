"""A weave that requires audits refuses packs without one, with an alarm, or with one of other weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.small_pack import make_pack
from skillweave.base import open_base
from skillweave.errors import UserError
from skillweave.pack import PackAudit, Skillpack
from skillweave.weave import Weave

EMBEDDING = "model.embed_tokens.weight"


def audited(fingerprint: str, outcome: str | None, digest: str | None = None) -> Skillpack:
    pack = make_pack(fingerprint)
    del pack.card.entries[EMBEDDING], pack.tensors[EMBEDDING]  # it has another number of tokens than the base
    if outcome is not None:
        audit = PackAudit(outcome=outcome, date="2026-01-01", tool="skillweave 0.0", digest=digest or pack.digest)  # type: ignore[arg-type]
        pack.card.audit = audit.model_dump(mode="json")
    return pack


def test_only_audited_packs_are_loaded_at_once_and_later(micro_base: Path, tmp_path: Path) -> None:
    base = open_base(micro_base)
    packs = {
        "fine": audited(base.fingerprint, "no alarm at this threshold"),
        "unsure": audited(base.fingerprint, "not enough evidence"),
        "none": audited(base.fingerprint, None),
        "alarm": audited(base.fingerprint, "alarm"),
        "other": audited(base.fingerprint, "no alarm at this threshold", "0" * 16),
    }
    folder = Weave.write(tmp_path / "weave", base, packs)
    assert Weave.from_pretrained(folder, base=base).loaded == list(packs)
    weave = Weave.from_pretrained(folder, base=base, packs=["fine", "unsure"], require_audit=True)
    assert weave.loaded == ["fine", "unsure"]
    for name, message in (
        ("none", "has no audit, and one is required: run `skillweave audit pack PACK"),
        ("alarm", "raised an alarm, and the pack is refused"),
        ("other", "is of other weights or files"),
    ):
        with pytest.raises(UserError, match=message):
            weave.load(name)
    with pytest.raises(UserError, match="the pack 'none' has no audit"):
        Weave.from_pretrained(folder, base=base, require_audit=True)
