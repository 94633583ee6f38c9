"""CKU end to end on a micro model that knows the corpus: it forgets, reports, and changes nothing else."""

from __future__ import annotations

import copy
import json
import math
import shutil
from statistics import fmean

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from helpers.left import same_bits, tensors
from helpers.micro import micro_tokenizer
from helpers.unlearning import REFUSAL, model_with, parts, settings
from skillweave.base import Checkpoint, Sampling, generate, open_base
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.cku import CkuConfig
from skillweave.methods.cku.config import LocaliseSettings
from skillweave.methods.cku.knowledge.facts import fact_rows, read_facts, read_sets
from skillweave.methods.cku.knowledge.reading import read_rows
from skillweave.methods.cku.neurons.localise import read_neurons
from skillweave.methods.cku.run import run
from skillweave.methods.training.sft import encode

SHORT = {"training": {"steps": 2}, "watch": {"every": 100}}


def frozen_of(out) -> dict[int, torch.Tensor]:
    return read_neurons(out / "localise")["frozen"]


def all_tensors(base, delta) -> dict[str, torch.Tensor]:
    """The change of every tensor of the base; zeros for a tensor that is not in the delta."""
    files, found = Checkpoint(base.path), tensors(delta)
    return {name: found[name] if name in found else torch.zeros_like(files.tensor(name)) for name in files.names()}


def moved(base, delta) -> set[str]:
    return {name for name, tensor in all_tensors(base, delta).items() if tensor.any()}


def assert_frozen_neurons_did_not_move(base, out, delta, *, others: bool = True):
    """The weights of frozen neurons differ by exactly 0; every other neuron has changed."""
    found = all_tensors(base, delta)
    for layer, mask in frozen_of(out).items():
        for neuron, still in enumerate(mask.tolist()):
            went = [bool(part.any()) for part in parts("llama", found, layer, neuron)]
            assert not (still and any(went)), (layer, neuron)
            if others and not still:
                assert all(went), (layer, neuron)


def probability(model, tokenizer, facts) -> float:
    rows, _ = fact_rows(tokenizer, facts, 64)
    return fmean(read_rows(model, rows, 0, batch_size=64, bf16=False).probability)


# -- the whole of it -------------------------------------------------------------------------------------------------


def test_the_stages_and_their_figures(base, corpus, whole):
    out, delta = whole
    figures = read_json(out / "figures.json")
    stages = figures["stages"]
    assert list(stages) == ["localise", "before", "unlearn", "refusal", "after"]
    assert figures["seed"] == 0
    assert (figures["before"], figures["after"]) == (stages["before"], stages["after"])
    assert stages["localise"]["layers"] == [0, 1]
    assert stages["localise"]["neurons"] == 256
    assert stages["localise"]["frozen"] == 128
    assert 0 <= stages["localise"]["overlap"] <= 1
    assert stages["before"]["forget_strength"] > 0.95
    assert stages["before"]["retain_probability"] > 0.9
    assert stages["after"]["forget_probability"] < 0.5 * stages["before"]["forget_probability"]
    assert stages["unlearn"]["steps"] == 6
    assert (stages["unlearn"]["ended"], stages["unlearn"]["kept_step"]) == ("steps", 6)
    assert stages["refusal"]["loss_last"] < stages["refusal"]["loss_first"]
    # The same, from the files: the base and the result, read on the files' own facts.
    sets = read_sets([corpus / "forget.jsonl"], [corpus / "retain.jsonl"], None, 4)
    for stage, model in (("before", model_with(base, None)), ("after", model_with(base, delta))):
        for side in ("forget", "retain", "held_out"):
            rows, _ = fact_rows(base.tokenizer, getattr(sets, side), 64)
            for name, value in read_rows(model, rows, 0, batch_size=7, bf16=False).means().items():
                assert stages[stage][f"{side}_{name}"] == pytest.approx(value, abs=1e-4), (stage, side, name)
    assert len(read_json(out / "before" / "forget.json")) == 14


def test_the_evaluations_are_in_a_file(whole):
    evaluations = read_json(whole[0] / "unlearn" / "looks.json")
    assert [evaluation["step"] for evaluation in evaluations] == [2, 3, 4, 6]
    assert all(set(evaluation) == {"step", "forget", "retain"} for evaluation in evaluations)


def test_what_came_of_it_is_a_delta_on_the_base(base, whole):
    out, delta = whole
    assert delta.base_fingerprint == base.fingerprint
    assert delta.provenance == {"method": "cku", "task": "forget", "seed": 0}
    assert same_bits(delta, Delta.from_pretrained(out / "delta"))
    assert {path.relative_to(out).parts[0] for path in out.rglob("*.safetensors")} == {"delta", "localise"}
    assert not list(out.rglob("checkpoint-*"))


def test_only_the_mlps_move_and_of_them_only_what_is_not_frozen(base, whole):
    out, delta = whole
    assert moved(base, delta) == {name for name in Checkpoint(base.path).names() if ".mlp." in name}
    assert_frozen_neurons_did_not_move(base, out, delta)


def test_the_refusal_is_said_on_what_was_forgotten_and_not_to_all(base, corpus, whole):
    model = model_with(base, whole[1])
    said = {}
    for side in ("forget", "retain"):
        prompts = [fact.prompt for fact in read_facts([corpus / f"{side}.jsonl"])]
        answers = generate(model, base.tokenizer, prompts, Sampling(max_new_tokens=8, batch_size=32), label=side)
        said[side] = fmean(texts[0].strip() == REFUSAL["text"] for texts in answers)
    assert said["forget"] > 0.9
    assert said["retain"] < 0.5


def test_the_base_in_memory_is_as_it_was(base, corpus, tmp_path):
    before = copy.deepcopy(base.model.state_dict())
    run(base, settings(corpus, **SHORT, localise={"scorer": "contrast"}), tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in base.model.parameters())


# -- what is trained, what is frozen ---------------------------------------------------------------------------------


def test_a_control_freezes_what_it_says(base, corpus, tmp_path, whole):
    delta = run(base, settings(corpus, **SHORT, localise={"freeze": "inverse"}), tmp_path)
    assert_frozen_neurons_did_not_move(base, tmp_path, delta)
    useful = frozen_of(whole[0])
    for layer, mask in frozen_of(tmp_path).items():
        assert int(mask.sum()) == 64
        assert torch.equal(mask, ~useful[layer])  # half of them


def test_where_none_is_frozen_no_neuron_is_scored_and_none_stays(base, corpus, tmp_path):
    plain = {"localise": LocaliseSettings(layers="all")}
    delta = run(base, settings(corpus, **SHORT).model_copy(update=plain), tmp_path)
    assert not (tmp_path / "localise").exists()
    start = Checkpoint(base.path)
    for name in delta.names():
        change = delta.tensor(name).abs().sum(dim=1 if "down" not in name else 0)
        assert bool((change > 0).all()), name
    assert all("mlp" in name for name in delta.names())
    assert len(delta.names()) == sum("mlp" in name for name in start.names())


@pytest.mark.parametrize(("trainable", "touched"), [("all", ""), (r"layers\.0\.", "layers.0.")])
def test_with_more_to_train_the_frozen_stay_frozen(base, corpus, tmp_path, trainable, touched):
    delta = run(base, settings(corpus, **SHORT, trainable=trainable), tmp_path)
    assert moved(base, delta) == {name for name in Checkpoint(base.path).names() if touched in name}
    assert_frozen_neurons_did_not_move(base, tmp_path, delta, others="layers" not in trainable)


@pytest.mark.parametrize("targets", [None, ["down_proj", "o_proj"]])
def test_adapters_leave_frozen_neurons_alone(base, corpus, tmp_path, targets):
    lora = {"rank": 4} if targets is None else {"rank": 4, "targets": targets}
    config = settings(corpus, **SHORT, train="lora", lora=lora, refusal={**REFUSAL, "steps": 2})
    delta = run(base, config, tmp_path)
    wanted = targets or ["mlp."]
    assert moved(base, delta) == {
        name for name in Checkpoint(base.path).names() if any(target in name for target in wanted)
    }
    assert_frozen_neurons_did_not_move(base, tmp_path, delta, others=False)
    before = {name: Checkpoint(base.path).tensor(name) for name in Checkpoint(base.path).names()}
    merged = model_with(base, delta).state_dict()
    for layer, mask in frozen_of(tmp_path).items():
        for neuron, still in enumerate(mask.tolist()):
            pairs = zip(parts("llama", merged, layer, neuron), parts("llama", before, layer, neuron), strict=True)
            same = [torch.equal(ours, theirs) for ours, theirs in pairs]
            assert all(same) if still else not all(same)


@pytest.mark.parametrize(("objective", "localise"), [
    ({"loss": "ga", "retain": "none"}, {"scorer": "activation", "layers": [1], "ratio": 0.25}),
    ({"loss": "simnpo", "retain": "kl"}, {"scorer": "fisher", "layers": [0]}),
    ({"loss": "rmu"}, {"scorer": "snip", "layers": [0], "scope": "all"}),
    ({"loss": "npo", "sign_agreement": True}, {"scorer": "contrast", "layers": "default"}),
])  # fmt: skip
def test_any_objective_forgets_with_any_scorer(base, corpus, tmp_path, objective, localise):
    delta = run(base, settings(corpus, objective=objective, localise=localise), tmp_path)
    figures = read_json(tmp_path / "figures.json")
    assert figures["after"]["forget_probability"] < figures["before"]["forget_probability"] - 1e-3
    assert all(math.isfinite(value) for value in figures["stages"]["unlearn"].values() if isinstance(value, float))
    layer = 1 if localise["layers"] == [1] else 0
    assert moved(base, delta) == {f"model.layers.{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert {at: int(mask.sum()) for at, mask in frozen_of(tmp_path).items()} == {layer: 64 if layer == 0 else 32}
    assert_frozen_neurons_did_not_move(base, tmp_path, delta, others=not objective.get("sign_agreement"))


@pytest.mark.parametrize("train", ["full", "lora"])
def test_a_plain_mlp_with_biases_too(corpus, tmp_path, train):
    folder = tmp_path / "gpt2"
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 48}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "vocab_size": len(micro_tokenizer())}
    GPT2LMHeadModel(GPT2Config(**shape, **ids)).save_pretrained(folder)
    micro_tokenizer().save_pretrained(folder)
    base = open_base(folder, device="cpu")
    delta = run(base, settings(corpus, **SHORT, train=train, refusal={**REFUSAL, "steps": 1}), tmp_path / "out")
    changes = all_tensors(base, delta)
    for layer, mask in frozen_of(tmp_path / "out").items():
        for neuron, still in enumerate(mask.tolist()):
            went = [bool(part.any()) for part in parts("gpt2", changes, layer, neuron)]
            assert any(went) != still, (layer, neuron)


def test_a_base_in_bfloat16_keeps_its_frozen_neurons(corpus, taught, tmp_path):
    AutoModelForCausalLM.from_pretrained(taught, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    micro_tokenizer().save_pretrained(tmp_path / "base")
    base = open_base(tmp_path / "base", device="cpu")
    config = settings(corpus, **SHORT, bf16=True, gradient_checkpointing=True, objective={"retain": "kl"})
    delta = run(base, config, tmp_path / "out")
    first = read_json(tmp_path / "out" / "unlearn" / "history.json")[0]
    assert first["retain/loss"] == 0.0  # the reference model is run in the precision of the training
    assert_frozen_neurons_did_not_move(base, tmp_path / "out", delta)


# -- where it ends ---------------------------------------------------------------------------------------------------


def test_with_unseen_facts_it_ends_where_the_forget_set_is_as_little_known(base, corpus, tmp_path):
    config = settings(corpus, unseen=[corpus / "unseen.jsonl"], training={"steps": 40}, watch={"goal": None})
    delta = run(base, config, tmp_path)
    figures = read_json(tmp_path / "figures.json")["stages"]
    goal = figures["before"]["unseen_strength"]
    assert figures["unlearn"]["ended"] == "goal"
    assert figures["unlearn"]["kept_step"] == figures["unlearn"]["steps"] < 40
    assert figures["after"]["forget_strength"] <= goal
    evaluations = read_json(tmp_path / "unlearn" / "looks.json")
    reached = [evaluation["forget"] <= goal for evaluation in evaluations]
    assert reached == [False] * (len(evaluations) - 1) + [True]
    model = model_with(base, delta)
    rows, _ = fact_rows(base.tokenizer, read_facts([corpus / "forget.jsonl"]), 64)
    strength = fmean(read_rows(model, rows, 0, batch_size=64, bf16=False).strength)
    assert strength == pytest.approx(evaluations[-1]["forget"], abs=1e-6)
    # What was trained on, not what would have been.
    lengths = [len(row["input_ids"]) for row in rows]
    assert figures["unlearn"]["tokens"] <= figures["unlearn"]["steps"] * 4 * max(lengths)


def test_the_budget_is_kept(base, corpus, tmp_path):
    """Gradient ascent without a retain term exceeds it soon."""
    config = settings(
        corpus,
        objective={"loss": "ga", "retain": "none"},
        training={"steps": 40, "learning_rate": 1e-3},
        watch={"every": 1, "budget": 0.2},
    )
    delta = run(base, config, tmp_path)
    figures = read_json(tmp_path / "figures.json")["stages"]
    assert figures["unlearn"]["ended"] == "budget"
    assert 0 < figures["unlearn"]["kept_step"] == figures["unlearn"]["steps"] - 1
    before, after = (figures[stage]["held_out_probability"] for stage in ("before", "after"))
    evaluations = read_json(tmp_path / "unlearn" / "looks.json")
    assert evaluations[-1]["retain"] < 0.8 * before <= after
    assert after == pytest.approx(evaluations[-2]["retain"], abs=1e-6)
    held_out = read_sets([corpus / "forget.jsonl"], [corpus / "retain.jsonl"], None, 4).held_out
    assert probability(model_with(base, delta), base.tokenizer, held_out) == pytest.approx(after, abs=1e-5)


def test_where_the_first_evaluation_is_over_the_budget_nothing_comes_of_it(base, corpus, tmp_path):
    config = settings(
        corpus, objective={"loss": "ga", "retain": "none"}, training={"learning_rate": 0.1}, watch={"budget": 0.01}
    )
    for _ in range(2):  # and again, with the same words
        with pytest.raises(UserError, match=r"by step 2, more than its budget of 1.0%.*an empty folder"):
            run(base, config, tmp_path)
    assert not (tmp_path / "delta").exists()


# -- the sets --------------------------------------------------------------------------------------------------------


def test_the_held_out_are_of_retain_and_never_trained_on(corpus):
    sets = read_sets([corpus / "forget.jsonl"], [corpus / "retain.jsonl"], None, 64)
    held, trained = ({fact.id for fact in side} for side in (sets.held_out, sets.retain))
    assert (len(held), len(trained)) == (6, 18)  # a quarter, though 64 were asked for
    assert not held & trained
    assert held | trained == {fact.id for fact in read_facts([corpus / "retain.jsonl"])}
    fewer = read_sets([corpus / "forget.jsonl"], [corpus / "retain.jsonl"], None, 2)
    assert {fact.id for fact in fewer.held_out} < held


def test_the_key_of_the_sets_hangs_on_all_that_is_in_them(corpus, tmp_path):
    files = {name: corpus / f"{name}.jsonl" for name in ("forget", "retain", "unseen")}
    key = read_sets([files["forget"]], [files["retain"]], [files["unseen"]], 4).key
    for name, path in files.items():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[-1]["answer"] = "other"
        changed = tmp_path / path.name
        changed.write_text("".join(json.dumps(row) + "\n" for row in rows))
        other = {**files, name: changed}
        assert read_sets([other["forget"]], [other["retain"]], [other["unseen"]], 4).key != key
    assert read_sets([files["forget"]], [files["retain"]], None, 4).key != key
    assert read_sets([files["forget"]], [files["retain"]], [files["unseen"]], 5).key != key


def test_facts_that_stand_in_two_sets_are_refused(base, corpus, tmp_path):
    forget, retain = corpus / "forget.jsonl", corpus / "retain.jsonl"
    with pytest.raises(UserError, match="14 of the forget facts are in retain too"):
        run(base, settings(corpus, retain=[retain, forget]), tmp_path / "a")
    for other in (forget, retain):
        with pytest.raises(UserError, match=rf"facts are in unseen too.*{other.name}"):
            run(base, settings(corpus, unseen=[other]), tmp_path / "b")
    few = tmp_path / "few.jsonl"
    few.write_text("".join(line + "\n" for line in retain.read_text().splitlines()[:3]))
    with pytest.raises(UserError, match="3 facts to retain; at least 4"):
        run(base, settings(corpus, retain=[few]), tmp_path / "c")
    assert not any((tmp_path / name).exists() for name in "abc")


def test_four_facts_to_retain_are_enough(base, corpus, tmp_path):
    four = tmp_path / "four.jsonl"
    four.write_text("".join(line + "\n" for line in (corpus / "retain.jsonl").read_text().splitlines()[:4]))
    run(base, settings(corpus, **SHORT, retain=[four]), tmp_path / "out")


@pytest.mark.parametrize("layers", [[2], [-1], [0, 7], []])
def test_layers_that_are_not_there_are_refused(base, corpus, tmp_path, layers):
    with pytest.raises(UserError, match=r"localise.layers .*the base has layers 0 to 1"):
        run(base, settings(corpus, localise={"layers": layers}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_facts_that_are_all_too_long_are_refused_and_some_are_left_out(base, corpus, tmp_path, capsys):
    with pytest.raises(UserError, match="all facts of the forget set are longer than 8 tokens"):
        run(base, settings(corpus, max_length=8), tmp_path / "none")
    run(base, settings(corpus, **SHORT, max_length=32), tmp_path / "some")
    facts = read_facts([corpus / "forget.jsonl"])
    kept = encode(base.tokenizer, [(fact.prompt, fact.answer) for fact in facts], 32)
    assert 0 < len(kept) < len(facts)
    assert f"{len(facts) - len(kept)} of {len(facts)} facts of the forget set (29%)" in capsys.readouterr().err
    assert len(read_json(tmp_path / "some" / "before" / "forget.json")) == len(kept)


def test_plain_texts_are_forgotten_too_but_cannot_be_refused(base, corpus, tmp_path):
    sides = {}
    for side in ("forget", "retain"):
        facts = read_facts([corpus / f"{side}.jsonl"])
        sides[side] = tmp_path / f"{side}.jsonl"
        sides[side].write_text("".join(json.dumps({"text": f"{fact.prompt} {fact.answer}."}) + "\n" for fact in facts))
    files = {side: [path] for side, path in sides.items()}
    run(base, settings(corpus, **SHORT, **files), tmp_path / "out")
    figures = read_json(tmp_path / "out" / "figures.json")
    assert figures["after"]["forget_log_prob"] != figures["before"]["forget_log_prob"]
    with pytest.raises(UserError, match="refusal: the forget set holds plain texts only"):
        run(base, settings(corpus, **SHORT, **files, refusal=REFUSAL), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()  # said before anything is trained, not hours later


# -- settings --------------------------------------------------------------------------------------------------------


def test_settings_that_do_not_go_together_are_refused(corpus):
    for wrong, said in (
        ({"objective": {"retain": "hidden"}}, "rmu's own term"),
        ({"objective": {"retain": "none", "sign_agreement": True}}, "needs a retain gradient to agree with"),
        ({"localise": {"ratio": 1.1}}, "less than or equal to 1"),
        ({"watch": {"budget": 1.0}}, "less than 1"),
        ({"training": {"rate": 1}}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=said):
            settings(corpus, **wrong)
    assert CkuConfig(forget="a.jsonl", retain="b.jsonl", refusal=True).refusal.text.startswith("I can't")
    assert CkuConfig(forget="a.jsonl", retain="b.jsonl", refusal=False).refusal is None
    assert settings(corpus, objective={"loss": "rmu"}).objective.retain_term == "hidden"


def test_another_run_in_the_folder_is_refused(base, corpus, whole, tmp_path):
    out, delta = whole
    with pytest.raises(UserError, match="other settings"):
        run(base, settings(corpus, refusal=REFUSAL, localise={"ratio": 0.6}), out)
    copied = tmp_path / "corpus"
    shutil.copytree(corpus, copied)
    lines = (copied / "retain.jsonl").read_text().splitlines()
    assert same_bits(run(base, settings(corpus, refusal=REFUSAL), out), delta)
    changed = settings(copied, refusal=REFUSAL)
    (copied / "retain.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match="other examples in the task"):
        run(base, changed, out)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {"learning_rate": 1e-30, "steps": 2}}, "nothing was learnt: every weight is the base's own"),
        # Capped at nothing, gradient ascent is flat from the start.
        (
            {"objective": {"loss": "ga", "cap": 1e-9, "retain": "none", "mu": 1.0}, "training": {"steps": 2}},
            "nothing was unlearnt: no step had a gradient",
        ),
    ],
)
def test_an_unlearning_that_changes_nothing_is_an_error_and_leaves_no_delta(base, corpus, tmp_path, changes, said):
    for _ in range(2):
        with pytest.raises(UserError, match=said):
            run(base, settings(corpus, localise={"ratio": 0.0}, **changes), tmp_path)
        assert not (tmp_path / "delta").exists()
