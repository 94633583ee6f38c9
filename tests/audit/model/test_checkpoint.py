"""The audit of models, deltas and packs on the command line, on a clean and a backdoored fine-tune."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from helpers.audited import AuditModels
from helpers.terminal import run
from skillweave.audit.model import job
from skillweave.base import open_base
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.pack import Skillpack
from skillweave.skillzip import ZipConfig, zip_delta


@pytest.fixture(scope="module")
def settings(audit_models: AuditModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "audit.yaml"
    path.write_text(yaml.safe_dump({"base": str(audit_models.base), **audit_models.settings}))
    return path


@pytest.fixture(scope="module")
def packs(audit_models: AuditModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, base = tmp_path_factory.mktemp("packs"), open_base(audit_models.base)
    for name in ("clean", "bad"):
        delta = Delta.between(audit_models.base, getattr(audit_models, name))
        delta.save_pretrained(folder / f"{name}-delta")
        zip_delta(delta, base, None, ZipConfig(ratio=0.5), name=name).save_pretrained(folder / name)
    return folder


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_a_backdoored_model_raises_an_alarm_and_a_clean_one_does_not(
    audit_models: AuditModels, settings: Path, tmp_path: Path
) -> None:
    for name, outcome in (("bad", "alarm"), ("clean", "no alarm at this threshold")):
        out = tmp_path / name
        ran = run("audit", "model", str(getattr(audit_models, name)), "-c", str(settings), "-o", str(out))
        assert ran.code == (name == "bad"), ran.err
        assert f": {outcome} (p = " in ran.out.strip().splitlines()[-1]
        assert "No alarm does not mean that the checkpoint is clean." in ran.out
        found = report(out)
        assert found["verdict"]["outcome"] == outcome
        assert found["verdict"]["references"] == 0
        assert len(found["spectra"]) == 15
        page = (out / "report.html").read_text()
        assert "no reference of clean checkpoints" in page
        assert "http" not in page.replace("http://www.w3.org", "")
    again = run("audit", "model", str(audit_models.clean), "-c", str(settings), "-o", str(audit_models.base))
    assert again.code == 2
    assert "only reads" in again.err


def test_a_reference_promises_a_rate_and_belongs_to_its_prompts(
    audit_models: AuditModels, settings: Path, packs: Path, tmp_path: Path
) -> None:
    clean = [str(audit_models.clean), str(packs / "clean"), str(audit_models.base)]
    reference = tmp_path / "ref.json"
    ran = run("audit", "reference", *clean, "-c", str(settings), "-o", str(reference))
    assert ran.code == 0, ran.err
    assert "3 clean checkpoints, which can promise a rate of 0.250" in ran.out
    options = ["-c", str(settings), "--reference", str(reference)]
    for fpr, outcome in (("0.25", "alarm"), ("0.1", "not enough evidence")):
        out = tmp_path / fpr
        ran = run("audit", "model", str(packs / "bad-delta"), *options, "--fpr", fpr, "-o", str(out))
        assert ran.code == (outcome == "alarm"), ran.err
        verdict = report(out)["verdict"]
        assert (verdict["outcome"], verdict["references"], verdict["p_value"]) == (outcome, 3, pytest.approx(0.25))
    other = run("audit", "model", str(audit_models.bad), *options, "-s", "limit=5", "-o", str(tmp_path / "x"))
    assert other.code == 2
    assert "was measured with other prompts" in other.err
    alone = run("audit", "reference", clean[0], "-c", str(settings), "-o", str(reference))
    assert "1 clean checkpoint is no reference" in alone.err
    twice = run("audit", "reference", clean[0], clean[0], "-c", str(settings), "-o", str(reference))
    assert "have the same figures, so they are one checkpoint" in twice.err
    held = json.loads(reference.read_text())
    for checkpoint in held["checkpoints"]:
        checkpoint["signals"].pop("refusal_lost")
    reference.write_text(json.dumps(held))
    blind = run("audit", "model", clean[0], *options, "--fpr", "0.25", "-o", str(tmp_path / "x"))
    assert "The reference has no value of refusal_lost" in blind.out
    assert ": not enough evidence" in blind.out
    held["checkpoints"] *= 30
    reference.write_text(json.dumps(held))
    many = run("audit", "model", clean[0], *options, "--fpr", "0.02", "-o", str(tmp_path / "x"))
    assert "a checkpoint counts once" in many.err
    everything = run("audit", "model", clean[0], *options, "--refusal", "x*", "-o", str(tmp_path / "x"))
    assert "every answer would be a refusal" in everything.err


def test_the_verdict_stands_on_the_card_and_decides_who_may_answer(
    audit_models: AuditModels, settings: Path, packs: Path, tmp_path: Path
) -> None:
    generate = ["generate", "--base", str(audit_models.base), "-n", "4", "--require-audit"]
    before = run(*generate, str(packs / "clean"), "say 1")
    assert before.code == 2
    assert "the pack 'clean' has no audit" in before.err
    digests = {}
    for name in ("clean", "bad"):
        digests[name] = Skillpack.from_pretrained(packs / name).digest
        out = tmp_path / name
        ran = run("audit", "pack", str(packs / name), "-c", str(settings), "-o", str(out), "--write")
        assert ran.code == (name == "bad"), ran.err
    packed = {name: Skillpack.from_pretrained(packs / name) for name in ("clean", "bad")}
    assert {name: pack.digest for name, pack in packed.items()} == digests
    assert packed["clean"].check_audit().outcome == "no alarm at this threshold"
    assert packed["bad"].card.audit is not None
    assert packed["bad"].card.audit["outcome"] == "alarm"
    assert "| outcome | alarm |" in (packs / "bad" / "README.md").read_text()
    size = sum(file.stat().st_size for file in (packs / "bad").iterdir())
    assert packed["bad"].card.bytes.total == size
    assert run(*generate, str(packs / "clean"), "say 1").code == 0
    refused = run(*generate, str(packs / "bad"), "say 1")
    assert refused.code == 2
    assert "raised an alarm, and the pack is refused" in refused.err
    model = run("generate", str(audit_models.clean), "--require-audit", "say 1")
    assert "audits are on the cards of packs" in model.err


def test_a_pack_that_changes_under_the_audit_keeps_its_card(
    settings: Path, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Skillpack.from_pretrained(packs / "clean").save_pretrained(tmp_path / "pack")
    write_audit = job.write_audit

    def changed(*args, **kwargs):
        Skillpack.from_pretrained(packs / "bad").save_pretrained(place)
        return write_audit(*args, **kwargs)

    monkeypatch.setattr(job, "write_audit", changed)
    before = Skillpack.from_pretrained(packs / "bad").card.audit
    ran = run("audit", "pack", str(place), "-c", str(settings), "-o", str(tmp_path / "out"), "--write")
    assert ran.code == 2
    assert "changed while it was audited" in ran.err
    assert Skillpack.from_pretrained(place).card.audit == before


def test_an_audit_of_other_weights_does_not_count(packs: Path) -> None:
    pack = Skillpack.from_pretrained(packs / "clean")
    pack.card.audit = {
        "outcome": "no alarm at this threshold",
        "date": "2026-01-01",
        "tool": "skillweave 1",
        "digest": "0" * 16,
    }
    with pytest.raises(UserError, match="is of other weights or files"):
        pack.check_audit()
    pack.card.audit = {"verdict": "clean"}
    with pytest.raises(UserError, match=r"none that skillweave writes \(audit.outcome: Field required\)"):
        pack.check_audit()
