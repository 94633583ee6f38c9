"""A weave exported for vLLM: with an adapter, PEFT's model does what the packed model does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers.terminal import run
from helpers.weave_packs import random_pack
from skillweave.base import fingerprint, open_base, prompt_ids
from skillweave.base.open import Base
from skillweave.base.sizes import context_length
from skillweave.engine.vllm import VllmFolder, export_vllm
from skillweave.engine.vllm.export import launch_line
from skillweave.engine.vllm.proof import PROBE
from skillweave.errors import UserError
from skillweave.pack import Skillpack
from skillweave.pack.nearest_rank import nearest_factors, nearest_product
from skillweave.weave import Weave

IDS = torch.arange(5, 25).view(2, 10)
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def base(micro_base: Path) -> Base:
    return open_base(micro_base, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def weave(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    packs = {name: random_pack(base.model, base.fingerprint, name=name, seed=seed) for seed, name in enumerate("ab")}
    whole = "model.layers.0.self_attn.q_proj.weight"
    packs["whole"] = random_pack(base.model, base.fingerprint, name="whole", only=["down_proj"], difference=[whole])
    packs["norms"] = random_pack(base.model, base.fingerprint, name="norms", difference=[NORM])
    packs["norms"].tensors[NORM] *= 50
    return Weave.write(tmp_path_factory.mktemp("vllm") / "weave", base, packs, dtype="float32")


def peft_logits(folder: VllmFolder, pack: str) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder.base, dtype=torch.float32)
    with torch.no_grad():
        return PeftModel.from_pretrained(model, folder.adapter(pack)).eval()(IDS).logits


def packed_logits(weave: Path, base: Base, pack: str | None) -> torch.Tensor:
    opened = Weave.from_pretrained(weave, base=base)
    with torch.no_grad(), opened.packed_model.rows([pack] * len(IDS)):
        return opened.base.model(IDS).logits


@pytest.mark.parametrize("pack", ["a", "b", "whole"])
def test_an_adapter_does_what_its_pack_does(
    weave: Path, base: Base, micro_base: Path, tmp_path: Path, pack: str
) -> None:
    folder = export_vllm(weave, tmp_path / "out", base=micro_base, packs=[pack])
    assert fingerprint(folder.base) == base.fingerprint
    adapter = folder.card.packs[pack]
    assert not adapter.missing
    assert folder.card.max_lora_rank >= adapter.rank
    config = json.loads((folder.adapter(pack) / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["modules_to_save"]) == (adapter.rank, {}, None)
    found, packed, plain = peft_logits(folder, pack), packed_logits(weave, base, pack), packed_logits(weave, base, None)
    unzipped = Skillpack.from_pretrained(weave / "packs" / pack).unzip()
    with torch.no_grad():
        wanted = unzipped.apply(open_base(micro_base, dtype="float32", device="cpu")).model(IDS).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    # The packed model rounds what it multiplies with the integer factors.
    assert float((found - packed).abs().max()) < 0.1 * float((packed - plain).abs().max())


def test_what_a_lower_rank_loses_is_measured(weave: Path, base: Base, micro_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pack 'a' would leave out \d+\.\d% .*because ranks are too high"):
        export_vllm(weave, tmp_path / "out", base=micro_base, packs=["a"], max_rank=1)
    assert not (tmp_path / "out").exists()
    folder = export_vllm(
        weave, tmp_path / "out", base=micro_base, packs=["a"], max_rank=1, allow_left_out=True, kl=True
    )
    adapter = folder.card.packs["a"]
    assert adapter.rank == folder.card.max_lora_rank == 1
    pack = random_pack(base.model, base.fingerprint, name="a", seed=0).unzip()
    total = lost = 0.0
    for name in pack.names():
        values = torch.linalg.svdvals(pack.tensor(name).double())
        total += float(values.square().sum())
        lost += float(values[1:].square().sum())
    opened = open_base(micro_base, dtype="float32", device="cpu")
    ids = torch.tensor([prompt_ids(opened.tokenizer, PROBE)])[:, : context_length(opened.model)]
    with torch.no_grad():
        own = pack.apply(opened).model(ids).logits.double().log_softmax(-1)
        near = PeftModel.from_pretrained(opened.model, folder.adapter("a"))(ids).logits.double().log_softmax(-1)
    slow = torch.nn.functional.kl_div(near, own, reduction="none", log_target=True).sum(-1).mean()
    assert adapter.kl == pytest.approx(float(slow), rel=1e-3)
    assert adapter.kl > 1e-3
    assert "KL along a text" in (folder.path / "README.md").read_text()
    assert adapter.missing == pytest.approx(lost / total, rel=1e-4)


def test_what_no_adapter_holds_needs_consent(weave: Path, micro_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"pack 'norms' would leave out .*{NORM}.*unzip.*--allow-left-out"):
        export_vllm(weave, tmp_path / "out", base=micro_base, packs=["norms"])
    folder = export_vllm(weave, tmp_path / "out", base=micro_base, packs=["norms"], allow_left_out=True)
    assert set(folder.card.packs["norms"].left_out) == {NORM}
    assert NORM in (folder.path / "README.md").read_text()


def test_the_nearest_product_is_that_of_the_matrix() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(9, 5), torch.randn(5, 7)
    for rank in (1, 3, 5):
        values = torch.linalg.svd(left.double() @ right.double())
        wanted = values.U[:, :rank] * values.S[:rank] @ values.Vh[:rank]
        for near_left, near_right, lost in (
            nearest_product(left, right, rank),
            nearest_factors(left @ right, rank),
        ):
            torch.testing.assert_close((near_left @ near_right).double(), wanted, atol=1e-4, rtol=1e-4)
            assert lost == pytest.approx(float(values.S[rank:5].square().sum()), abs=1e-3)
    assert nearest_product(left, right, 5)[0] is left
    assert nearest_factors(torch.zeros(4, 3), 2)[2] == 0.0


def test_the_command_says_what_it_wrote_and_how_to_start_vllm(weave: Path, micro_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = run("export", "vllm", str(weave), str(out), "-b", str(micro_base), "-p", "a", "-p", "whole")
    assert shown.code == 0, shown.err
    folder = VllmFolder(out)
    assert launch_line(folder.path, folder.card) in shown.out
    assert "a: rank 8, the whole change" in shown.out
    again = run("export", "vllm", str(weave), str(out), "-b", str(micro_base))
    assert again.code == 2
    assert "holds something already" in " ".join(again.err.split())
    for options, text in ((["-p", "c"], "no pack 'c'"), (["--max-rank", "20"], "choose one of 1, 8, 16")):
        refused = run("export", "vllm", str(weave), str(tmp_path / "new"), "-b", str(micro_base), *options)
        assert refused.code == 2
        assert text in " ".join(refused.err.split())
        assert not (tmp_path / "new").exists()


def test_a_damaged_folder_is_refused(weave: Path, micro_base: Path, tmp_path: Path) -> None:
    folder = export_vllm(weave, tmp_path / "out", base=micro_base, packs=["a"])
    card = folder.path / "serve.json"
    values = json.loads(card.read_text())
    card.write_text(json.dumps({**values, "packs": {"c": values["packs"]["a"]}}))
    with pytest.raises(UserError, match=r"adapters/c is missing\. Export"):
        VllmFolder(folder.path)
    card.write_text(json.dumps({**values, "max_lora_rank": 0}))
    with pytest.raises(UserError, match=r"serve\.json: max_lora_rank"):
        VllmFolder(folder.path)
