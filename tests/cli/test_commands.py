"""Every command end to end on a micro base, compared with transformers if possible."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.micro import micro_model, micro_tokenizer
from helpers.terminal import Bench, Ran, made, refused, run
from skillweave.delta import Delta
from skillweave.pack import Skillpack
from skillweave.units import human_bytes

ASKED = ["Sort from smallest to largest: 9, 4", "hello", "What is [bold]2 + 2[/bold]?", "a :smile: b"]


def greedy(model_folder: Path, prompts: list[str], new: int) -> list[str]:
    """The answers of transformers, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    answers = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        out = model.generate(ids, max_new_tokens=new, do_sample=False)
        answers.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return answers


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# -- specialise, zip, unzip ------------------------------------------------------------------------------------------


def test_specialise_leaves_a_delta_and_goes_on_from_it(bench: Bench) -> None:
    assert Delta.from_pretrained(bench.delta).names()
    again = made("specialise", "-b", bench.base, "-t", bench.task, "-c", bench.settings, "-o", bench.delta.parent)
    assert f"Wrote {bench.delta}" in again.out
    assert again.err == ""  # nothing was done anew
    config = json.loads((bench.delta.parent / "config.json").read_text())["config"]
    assert config["warm_start"]["steps"] == 4


def test_a_pack_of_each_source_knows_where_it_comes_from(bench: Bench, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    made("unzip", bench.pack, "-o", tuned, "--dtype", "float32")
    ran = made("zip", "-b", bench.base, "--tuned", tuned, "--ratio", "1/2", "--name", "x", "-o", tmp_path / "a")
    assert re.search(r"pack +x\s", ran.out)
    made("zip", "-b", bench.base, "--lora", bench.adapter, "--budget", "80kB", "-o", tmp_path / "b", "-s", "bits=8")
    one, two, three = (Skillpack.from_pretrained(folder) for folder in (tmp_path / "a", tmp_path / "b", bench.pack))
    assert [pack.card.name for pack in (one, two, three)] == ["x", "b", "sort"]
    assert [pack.card.method for pack in (one, two, three)] == ["fine-tune", "lora", "delta"]
    assert sum(file.stat().st_size for file in (tmp_path / "b").iterdir()) <= 80_000
    assert two.card.codec.settings["bits"] == 8


def test_zip_replaces_an_older_pack_and_calibrates_when_asked(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "p"
    start = ("zip", "-b", bench.base, "--delta", bench.delta, "-o", out)
    unused = made(*start, "--ratio", "0.3", "--task", bench.task)
    assert "--task is not used" in unused.err
    made(*start, "--ratio", "0.5", "--task", bench.task, "--set", "activation_aware=true")
    card = Skillpack.from_pretrained(out).card
    assert card.codec.settings["activation_aware"] is True
    assert card.data == {"calibration": str(bench.task)}
    assert os.listdir(tmp_path) == ["p"]


def test_zip_refines_on_the_prompts_of_a_task(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "p"
    start = ("zip", "-b", bench.base, "--delta", bench.delta, "--ratio", "0.2", "--refine", "-o", out)
    without = run(*start)
    assert without.code == 2
    assert "refine needs prompts" in without.err
    few = ("-s", "refine.steps=3", "-s", "refine.prompts=6", "-s", "refine.max_new_tokens=4")
    ran = made(*start, "--task", bench.task, *few, "--allow-left-out")
    assert re.search(r"refine +\d .*steps.*KL to the specialist.*on 3 held-out prompts", " ".join(ran.out.split()))
    pack = Skillpack.from_pretrained(out)
    assert pack.card.codec.settings["refine"]["prompts"] == 6
    assert pack.card.codec.measured["refine"]["steps"] == 3
    assert pack.nbytes <= 0.2 * pack.card.bytes.bf16_delta
    assert os.listdir(tmp_path) == ["p"]  # the work is deleted


def test_what_is_left_out_is_shown_and_too_much_must_be_asked_for(bench: Bench, tmp_path: Path) -> None:
    tuned = AutoModelForCausalLM.from_pretrained(bench.base)
    with torch.no_grad():
        tuned.model.norm.weight += 0.5
        tuned.model.layers[0].mlp.up_proj.weight += 0.01
    tuned.save_pretrained(tmp_path / "tuned")
    micro_tokenizer().save_pretrained(tmp_path / "tuned")
    start = ("zip", "-b", bench.base, "--tuned", tmp_path / "tuned", "--budget", "20kB", "-o", tmp_path / "p")
    refused = run(*start, "--set", "other=drop")
    assert refused.code == 2
    assert re.search(r"leave out 9\d\.\d% of the change .*'model\.norm\.weight'.* --allow-left-out", refused.err)
    assert not (tmp_path / "p").exists()
    allowed = made(*start, "--set", "other=drop", "--allow-left-out")
    assert re.search(r"left out +9\d\.\d% of the change \(of its squared norm\): model\.norm\.weight", allowed.out)
    whole = made(*start)  # by default it is all there
    assert "2 changed, 0 left out" in whole.out
    assert "of the change" not in whole.out


def test_unzip_opens_with_transformers_and_is_base_plus_pack(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "model"
    ran = made("unzip", bench.pack, "-o", out, "--dtype", "float32")
    assert ran.out == f"Wrote {out}: open it with transformers' from_pretrained.\n"
    base, pack = AutoModelForCausalLM.from_pretrained(bench.base), Skillpack.from_pretrained(bench.pack)
    ids = torch.randint(5, 90, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = base(ids).logits
        for name, parameter in base.named_parameters():
            if name in pack.card.entries:
                parameter += pack.decode(name)
        after = base(ids).logits
        written = AutoModelForCausalLM.from_pretrained(out)
        torch.testing.assert_close(written(ids).logits, after, rtol=1e-5, atol=1e-5)
    assert (after - before).abs().max() > 0.1  # the pack changes something
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(bench.base).chat_template


def test_an_adapter_in_a_folder_below_becomes_a_pack_and_an_adapter_again(bench: Bench, tmp_path: Path) -> None:
    shutil.copytree(bench.adapter, tmp_path / "runs" / "epoch-3")
    lora = ("--lora", tmp_path / "runs", "--subfolder", "epoch-3")
    made("zip", "-b", bench.base, *lora, "--budget", "80kB", "-s", "bits=8", "-o", tmp_path / "pack")
    ran = made("export", "lora", tmp_path / "pack", tmp_path / "adapter")
    assert f"Wrote {tmp_path / 'adapter'}: LoRA of rank 2 on 14 layers." in ran.out
    assert "vLLM needs --max-lora-rank 8." in ran.out
    ids = torch.arange(5, 25).view(2, 10)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(bench.base)(ids).logits
        before, after = (
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bench.base), folder)(ids).logits
            for folder in (bench.adapter, tmp_path / "adapter")
        )
    assert (after - before).norm() < 0.05 * (before - plain).norm()
    narrow = made("export", "lora", tmp_path / "pack", tmp_path / "narrow", "--dtype", "bfloat16", "--keep-ranks").out
    assert re.search(r"In bfloat16 the change is \d\.\de-03 off the pack's", narrow)
    assert "PEFT loads them, vLLM does not" in narrow


# -- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_a_pack(bench: Bench) -> None:
    size = sum(file.stat().st_size for file in bench.pack.iterdir())
    shown = made("inspect", bench.pack)
    assert f"{size:,} on disk" in shown.out
    assert "Tensors" not in shown.out
    listed = made("inspect", bench.pack, "--tensors").out
    entries = Skillpack.from_pretrained(bench.pack).card.entries
    for name, entry in entries.items():
        line = next(line for line in listed.splitlines() if name[:36] in line)  # a long name is folded
        assert "x".join(map(str, entry.shape)) in line
    assert len(entries) == 20


def test_inspect_a_weave(weave: Path) -> None:
    shown = made("inspect", weave).out
    for name in ("sort", "spell"):
        size = sum(file.stat().st_size for file in (weave / "packs" / name).iterdir())
        assert re.search(rf"{name} .* {human_bytes(size)} ", shown)
    assert re.search(r"router +yes", shown)


CUT_OFF = (
    "The answer was cut off before the model had ended: allow more with --max-new-tokens, unless the base's context is "
    "full\n"
)

# -- generate --------------------------------------------------------------------------------------------------------


def test_generate_one_prompt_says_what_transformers_says(bench: Bench) -> None:
    for prompt, answer in zip(ASKED, greedy(bench.base, ASKED, 6), strict=True):
        for arguments in ((bench.base, prompt), (bench.pack, prompt, "--pack", "base")):
            assert made("generate", *arguments, "-n", "6").out == f"{answer}\n"


def test_generate_with_a_delta_says_what_the_tuned_model_says(bench: Bench, tmp_path: Path) -> None:
    changes = load_file(bench.delta / "delta.safetensors")
    model = AutoModelForCausalLM.from_pretrained(bench.base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += changes[name]
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bench.base).save_pretrained(tmp_path)
    for prompt, answer in zip(ASKED, greedy(tmp_path, ASKED, 6), strict=True):
        assert made("generate", bench.delta, prompt, "-n", "6").out == f"{answer}\n"


def test_a_file_of_lines_becomes_jsonl_in_order(bench: Bench, tmp_path: Path) -> None:
    file, out = tmp_path / "asked.txt", tmp_path / "new" / "answers.jsonl"
    # A byte order mark, blank lines, the line ends of Windows, and a separator that only Unicode takes for one.
    lines = [ASKED[0], "", ASKED[1], "  ", "one\u2028two"]
    file.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    shown = made("generate", bench.base, "--file", file, "-n", "6")
    asked = [ASKED[0], ASKED[1], "one\u2028two"]
    found = [json.loads(line) for line in shown.out.split("\n") if line]
    assert [row["prompt"] for row in found] == asked
    assert [row["answer"] for row in found[:2]] == greedy(bench.base, asked[:2], 6)
    assert {row["pack"] for row in found} == {"base"}
    quiet = made("generate", bench.base, "--file", file, "-n", "6", "-o", out)
    assert quiet.out == ""
    assert out.read_text(encoding="utf-8") == shown.out


def test_lines_that_name_their_packs_are_answered_in_one_batch(weave: Path, bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    lines = [
        {"prompt": ASKED[0], "pack": "sort"},
        {"prompt": ASKED[0], "pack": "base"},
        {"messages": talk, "pack": "spell"},
        {"prompt": ASKED[1]},
        {"prompt": ASKED[0], "pack": None},
    ]
    file.write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = rows(made("generate", weave, "--file", file, "--pack", "base", "-n", "6").out)
    assert [row["pack"] for row in found] == ["sort", "base", "spell", "base", "base"]
    assert found[2]["prompt"] == talk
    own, hello = greedy(bench.base, ASKED[:2], 6)
    assert [found[1]["answer"], found[3]["answer"], found[4]["answer"]] == [own, hello, own]
    alone = made("generate", weave, ASKED[0], "--pack", "sort", "-n", "6").out
    assert found[0]["answer"] == alone.rstrip("\n") != own
    routed = rows(made("generate", weave, "--file", file, "-n", "6").out)
    assert {row["pack"] for row in routed} <= {"sort", "spell", "base"}
    assert routed[0] == found[0]
    for name, said in {"sotr": "has no pack 'sotr'; did you mean 'sort'?", "z" * 9999: "..."}.items():
        file.write_text("\n".join(map(json.dumps, [lines[0], {"prompt": ASKED[0], "pack": name}])), encoding="utf-8")
        error = " ".join(refused("generate", weave, "--file", file).split())
        assert "asked.jsonl, line 2: " in error
        assert said in error
        assert len(error) < 500


def test_the_router_notes_where_it_sends_a_prompt_on_standard_error(weave: Path) -> None:
    shown = made("generate", weave, ASKED[0], "-n", "1")
    assert re.fullmatch(r"route: (sort|spell|base) \(\d+%\)\n" + re.escape(CUT_OFF), shown.err)
    assert "route" not in shown.out
    assert made("generate", weave, ASKED[0], "--pack", "auto", "-n", "1") == shown


def test_sampling_follows_the_seed(bench: Bench) -> None:
    def draw(seed: int) -> str:
        return made("generate", bench.base, "hello", "--temperature", "1.5", "--seed", seed, "-n", "12").out

    assert draw(1) == draw(1) != draw(2)


def test_a_tokenizer_without_chat_template_works(tmp_path: Path) -> None:
    micro_model().save_pretrained(tmp_path / "plain")
    micro_tokenizer(chat_template=None).save_pretrained(tmp_path / "plain")
    shown = made("generate", tmp_path / "plain", "abc", "-n", "5").out.rstrip("\n")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    ids = tokenizer("abc", return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert shown == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_an_artefact_that_was_moved_with_its_base_opens_with_base(bench: Bench, tmp_path: Path, weave: Path) -> None:
    shutil.copytree(bench.base, tmp_path / "elsewhere")
    for target in (bench.pack, bench.delta, weave):
        shown = made("generate", target, "hello", "--base", tmp_path / "elsewhere", "--pack", "base", "-n", "3")
        assert shown.out.strip("\n")


# -- eval ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def echo(bench: Bench) -> Path:
    """A task whose gold answers are those of the base, so the base scores 100% by construction."""
    prompts = [f"{'please ' * (n % 3)}say {chr(97 + n)}{n}" for n in range(20)]
    answers = greedy(bench.base, prompts, 6)
    spoken = [{"prompt": asked, "answer": said} for asked, said in zip(prompts, answers, strict=True) if said.strip()]
    data = bench.folder / "echo.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in spoken[:12]), encoding="utf-8")
    task = bench.folder / "echo.yaml"
    splits = {"train": 2, "calibration": 2, "test": 8}
    task.write_text(yaml.safe_dump({"source": "jsonl", "path": str(data), "splits": splits}))
    return task


def test_eval_gives_the_base_what_it_deserves_and_writes_every_answer(bench: Bench, echo: Path, tmp_path: Path) -> None:
    out = tmp_path / "score.json"
    shown = made("eval", bench.base, "-t", echo, "-n", "6", "-o", out)
    assert shown.out == "echo, test: 100.0% (95% interval 67.6 to 100.0, 8 prompts)\n"  # Wilson: n / (n + 1.96^2)
    written = json.loads(out.read_text())
    assert (written["mean"], written["n"], len(written["answers"])) == (1.0, 8, 8)
    assert all(line["answer"] == line["gold"] and line["score"] == 1 for line in written["answers"])
    some = made("eval", bench.base, "-t", echo, "-n", "6", "--split", "train", "--limit", "1").out
    assert some.startswith("echo, train: 100.0% (")
    assert "1 prompts" in some


def test_eval_takes_a_delta_a_pack_and_a_weave(bench: Bench, echo: Path, weave: Path, tmp_path: Path) -> None:
    def mean(*arguments: object) -> float:
        made("eval", *arguments, "-t", echo, "-n", "6", "-o", tmp_path / "s.json")
        return json.loads((tmp_path / "s.json").read_text())["mean"]

    assert mean(bench.pack, "--pack", "base") == 1
    assert mean(weave, "--pack", "base") == 1
    # Four steps at a high rate: the specialist says something else than the base, in all three forms.
    for arguments in ((bench.delta,), (bench.pack,), (weave, "--pack", "sort")):
        assert mean(*arguments) < 1


def test_eval_of_several_tasks_with_samples_and_examples(bench: Bench, echo: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    settings = {"source": "builtin", "name": "micro_add", "splits": {"train": 4, "calibration": 1, "test": 3}}
    own.write_text(yaml.safe_dump(settings))
    asked = ("-n", "4", "--samples", "3", "--temperature", "1.5", "--top-p", "0.9", "--few-shot", "2")

    def written(*more: object, out: str = "score.json") -> dict:
        shown = made("eval", bench.base, "-t", own, "-t", echo, *asked, *more, "-o", tmp_path / out)
        assert all(name in shown.out for name in ("micro_add", "echo", "pass@2", "pass@3", "majority"))
        assert "echo: 2 examples of the train split were put before each prompt" in shown.out
        assert re.search(r"micro_add: \d+% of the answers were cut off", shown.err)
        return json.loads((tmp_path / out).read_text())

    found = written()
    assert found == written("--seed", "0", out="again.json")
    assert found["tasks"] != written("--seed", "1", out="other.json")["tasks"]
    assert [one["task"] for one in found["tasks"]] == [str(own), str(echo)]
    for one, size in zip(found["tasks"], (3, 8), strict=True):
        assert (one["n"], one["samples"], len(one["answers"]), len(one["examples"])) == (size, 3, size, 2)
        said = [sample for answer in one["answers"] for sample in answer["samples"]]
        assert len(said) == 3 * size
        assert one["mean"] == pytest.approx(sum(sample["score"] for sample in said) / len(said))
        assert one["cut_off"] == pytest.approx(sum(sample["ended"] == "length" for sample in said) / len(said))
        for answer in one["answers"]:
            assert answer["majority"] in [sample["answer"] for sample in answer["samples"]]
            assert answer["prompt"] not in [example["prompt"] for example in one["examples"]]


def test_eval_reads_one_task_or_several_from_a_file(bench: Bench, echo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(echo.read_text())
    for tasks, shown in ((str(echo), "echo, test: 100.0%"), ([str(echo), str(other)], "Mean scores on test prompts")):
        (tmp_path / "eval.yaml").write_text(yaml.safe_dump({"task": tasks, "max_new_tokens": 6}))
        assert shown in made("eval", bench.base, "--config", tmp_path / "eval.yaml").out


# -- with tools ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tools(bench: Bench) -> Path:
    """A file for ``--tools`` with one tool that the prompt does not mention, so the answers stay the same."""
    file = bench.folder / "ask.yaml"
    file.write_text(yaml.safe_dump({"tools": {"names": ["calculator"]}, "instruction": "", "max_tokens": 30}))
    return file


def test_eval_with_tools_keeps_every_conversation(bench: Bench, echo: Path, tools: Path, tmp_path: Path) -> None:
    shown = made("eval", bench.base, "-t", echo, "--tools", tools, "-o", tmp_path / "score.json")
    written = json.loads((tmp_path / "score.json").read_text())
    assert "0.00 calls a prompt, 0.00 of them failed; " in shown.out
    assert written["n"] == 8
    for line in written["answers"]:
        assert re.sub(r"<\w+>", "", line["conversation"]).startswith(line["gold"])  # which is without special tokens
        assert (line["calls"], line["failed_calls"], line["other_forms"]) == (0, 0, 0)
    made(
        "eval", bench.base, "-t", echo, "--tools", tools, "--samples", "2", "--temperature", "1", "-o", tmp_path / "two"
    )
    for line in json.loads((tmp_path / "two").read_text())["answers"]:
        first, second = line["samples"]
        assert first["conversation"] != second["conversation"]


def test_a_task_that_brings_tools_is_asked_with_them_unless_told_otherwise(bench: Bench, tmp_path: Path) -> None:
    tables = {"source": "builtin", "name": "steps", "splits": {"train": 2, "calibration": 1, "test": 2}}
    (tmp_path / "steps.yaml").write_text(yaml.safe_dump(tables))
    (tmp_path / "ask.yaml").write_text(yaml.safe_dump({"instruction": "", "max_tokens": 8}))
    asked = ("eval", bench.base, "-t", tmp_path / "steps.yaml", "-n", "4")
    assert "calls a prompt" in made(*asked, "--tools", tmp_path / "ask.yaml").out
    assert "calls a prompt" not in made(*asked, "--tools", "none").out
    told = run(*asked)  # all of it by default, which is more than a micro model can read
    assert "with the description of the tools; the model's context is 256" in " ".join(told.err.split())


def test_generate_with_tools_shows_the_way_and_then_the_answer(bench: Bench, tools: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("\n".join(ASKED))
    found = rows(made("generate", bench.base, "--file", tmp_path / "asked.txt", "--tools", tools).out)
    assert [row["prompt"] for row in found] == ASKED
    for row in found:
        shown = made("generate", bench.base, row["prompt"], "--tools", tools)
        if row["ended"] == "answer":
            assert shown.out == row["answer"] + "\n"
        else:
            assert shown.out == ""
            assert "No answer: it reached its longest length" in shown.err
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    for row in rows(made("generate", bench.base, "--file", tmp_path / "asked.txt", "--tools", tools, "-n", "3").out):
        assert len(tokenizer(row["conversation"], add_special_tokens=False)["input_ids"]) <= 3


# -- build -----------------------------------------------------------------------------------------------------------


def test_build_shows_a_table_that_fits_80_columns(built: tuple[Path, Ran]) -> None:
    folder, ran = built
    report = json.loads((folder / "report.json").read_text())
    assert report["command"].startswith("skillweave build ")
    lines = ran.out.splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("In memory"))]
    assert max(map(len, table)) <= 80
    assert "…" not in ran.out
    for word in ("base", "specialist", "pack", "routed", "gain", "kept", "delta"):
        assert word in "\n".join(table[:4])
    for name in ("sort", "spell"):
        score = f"{100 * report['skills'][name]['base']:.1f}"
        assert any(line.split()[:2] == [name, score] for line in table)
    assert f"the report in {folder / 'report.html'}" in ran.out
    assert "Loading weights" not in ran.err


def test_build_again_skips_everything_and_shows_the_same(built: tuple[Path, Ran], bench: Bench) -> None:
    folder, first = built
    again = run("build", bench.folder / "weave.yaml", "-o", folder)
    assert again.code == 0
    assert again.out == first.out
    assert again.err.count("done before, unchanged") == len(again.err.strip().splitlines()) - 2


# -- the real thing --------------------------------------------------------------------------------------------------


def test_in_a_process_of_its_own_stdout_holds_the_answer_and_nothing_else(bench: Bench) -> None:
    """The libraries' bars and warnings depend on the order of imports, so this needs a fresh process."""
    command = [sys.executable, "-c", "from skillweave.cli import main; main()"]
    shown = subprocess.run([*command, "generate", bench.delta, "hello", "-n", "4"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == made("generate", bench.delta, "hello", "-n", "4").out
    assert shown.stderr in ("  applying\n", f"  applying\n{CUT_OFF}")
    wrong = subprocess.run([*command, "generate", "nowhere", "hello"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("Error: no model is found at 'nowhere'")
    assert "Traceback" not in wrong.stderr
