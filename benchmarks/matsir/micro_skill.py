"""A micro base and the skill `induction` on it, for the benchmark's many seeds: a weave that one core makes in minutes.

The base is trained from scratch on generated rows of all roles. The skill is then made of what the base gets wrong: it
samples programs for new problems, and its own failing programs become rows of the refiner and the critic. `specialise`
trains on them, and the delta is zipped into the pack.

    python -m benchmarks.matsir.micro_skill FOLDER    makes the weave and prints how well it plays its roles
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.matsir.micro_rates import Ask, failures, measure, propose
from benchmarks.matsir.micro_train import MicroTraining, train_micro
from skillweave.artefact import write_json, write_text
from skillweave.base import Base, Sampling, open_base
from skillweave.base.generate import generate
from skillweave.methods.specialise import SpecialiseConfig
from skillweave.methods.specialise.run import run as specialise
from skillweave.micro import MicroShape
from skillweave.progress import console
from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.induction import InductionConfig, InductionFamily, write_induction
from skillweave.reason.induction.draw import DrawnProblem
from skillweave.reason.induction.families import FAMILIES, commands, lists
from skillweave.reason.induction.families.program import ProgramPart
from skillweave.reason.induction.rows import criticise_prompt, refine_prompt, row
from skillweave.reason.induction.write import Problems
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Weave, is_weave

SKILL = "induction"
SHAPE = MicroShape(hidden=128, layers=4, heads=4, kv_heads=2, intermediate=384, context=256)
ZIP = ZipConfig(ratio="1/4", bits=8)
TRAINING = MicroTraining()
BATCH = 64
"""Rows in each step of the skill's training."""


@dataclass(frozen=True)
class SkillPlan:
    """How much is done.

    - ``settings``, ``training``: the problems and rows, and the training of the base on them
    - ``own``: new problems that the base samples ``samples`` programs for, to make the skill's rows
    - ``rate``: the learning rate of the skill's training
    """

    settings: InductionConfig
    training: MicroTraining = TRAINING
    own: int = 3000
    samples: int = 4
    rate: float = 5e-4


PLAN = SkillPlan(
    InductionConfig(
        rows=70_000,
        tasks=60,
        practice=100,
        families={
            "lists": InductionFamily(train=(1, 3), test=(2, 3), pairs=(5, 6)),
            "commands": InductionFamily(train=(2, 5), test=(4, 5), pairs=(6, 8)),
        },
        kinds={"program": 0.50, "refine": 0.34, "criticise": 0.06, "answer": 0.04, "rule": 0.03, "code": 0.03},
    )
)
QUICK = SkillPlan(
    PLAN.settings.model_copy(update={"rows": 200, "tasks": 2, "practice": 2}),
    MicroTraining(steps=10),
    own=40,
    samples=1,
)


def words() -> list[str]:
    """The tokens beside the characters: the lines, words, colours and numbers of both families."""
    list_lines = [FAMILIES["lists"].source((part,)).split("\n")[1] for part in lists.ALL]
    coloured = [ProgramPart(kind, colour) for kind in ("write", "put_first") for colour in commands.COLOURS]
    operations = [ProgramPart(part.kind, part.value, "dax") for part in (*commands.ALL, *coloured)]
    command_lines = [FAMILIES["commands"].source((part,)).split("\n")[3] for part in operations]
    start = "        if w == 'dax': "
    numbers = [str(number) for number in range(-9, 31)]
    found = [
        *("def f(x):\n", "    return x", "    out = []\n    for w in x.split():\n", "    return ' '.join(out)"),
        *(f"{line}\n" for line in list_lines),
        *(f"{line.removeprefix(start)}\n" for line in command_lines),
        *(start.replace("dax", word) for word in commands.WORDS),
        *(f"{space}{word}" for space in ("", " ") for word in (*commands.WORDS, *commands.COLOURS)),
        *(number for number in numbers if len(number) > 1),
        *(f"{number}, " for number in numbers),
        *("] -> [", "]\n[", "] gave [", " -> ?", " -> ", " gave ", "Wrong:\n", "Failed:\n", "Rule: ", "Note: "),
        *("Write f.", "Fix f.", "What is wrong?", "Say the rule.", ", then ", "; "),
        *(FAMILIES["lists"].rule((part,)) for part in lists.ALL),
        *(FAMILIES["commands"].rule((part,)).removeprefix("dax") for part in operations),
        *("a step is missing before step ", "a step is missing at the end", "step "),
        *(" is wrong", " is missing", " is too much"),
    ]
    return list(dict.fromkeys(found))


def induction_base(plan: SkillPlan = PLAN) -> Path:
    """The micro base, trained on rows of all roles; it is trained once and then comes from the cache."""
    rows = [(made["prompt"], made["answer"]) for made, _ in Problems(plan.settings).rows()]
    return train_micro(rows, words(), SHAPE, plan.training, plan.settings.seed)


def asking(base: Base, temperature: float = 1.0) -> Ask:
    """Answers of a model, as :mod:`benchmarks.matsir.micro_rates` asks for them."""

    def ask(prompts: Sequence[str], samples: int, seed: int) -> list[list[str]]:
        sampling = Sampling(max_new_tokens=32, temperature=temperature, samples=samples, batch_size=256, seed=seed)
        return generate(base.model, base.tokenizer, list(prompts), sampling)

    return ask


def own_rows(ask: Ask, problems: Sequence[DrawnProblem], samples: int, random: Random) -> list[dict[str, Any]]:
    """Rows of the refiner and the critic about the model's own failing programs, and rows of the proposer.

    A problem has at most two rows of the refiner. A third of them has the right note, a quarter programs that failed.
    """
    prompts = PromptSet.named("induction")
    rows = []
    sampled = propose(ask, problems, samples, seed=random.randrange(2**31))
    for problem, drawn in zip(problems, sampled, strict=True):
        answer, wrongs = problem.family.source(problem.program), failures(problem, drawn, samples)
        for wrong in wrongs[:2]:
            fault = problem.family.fault(wrong, problem.program)
            others = tuple(one for one in wrongs if one != wrong)[:2] if random.random() < 0.25 else ()
            note = fault if random.random() < 1 / 3 else ""
            rows.append((refine_prompt(problem, prompts, wrong, note, others), answer, "refine", problem))
            if random.random() < 0.3:
                rows.append((criticise_prompt(problem, prompts, wrong), fault, "criticise", problem))
        made = row("program", problem, prompts, random)
        if made is not None:
            rows.append((made["prompt"], answer, "program", problem))
    return [{"prompt": p, "answer": a, "kind": kind, "family": problem.family.name} for p, a, kind, problem in rows]


def micro_weave(folder: str | Path, plan: SkillPlan = PLAN) -> Path:
    """Make the weave with the pack ``induction`` in ``folder/weave``, unless it is there; returns its folder.

    ``folder/data`` has the held-out test problems and the practice problems (:func:`write_induction`), which neither
    the base nor the skill was trained on; ``folder/skill`` has the rows and the delta of the skill.
    """
    folder = Path(folder)
    data, skill, weave = (folder / part for part in ("data", SKILL, "weave"))
    if not data.is_dir():
        write_induction(data, plan.settings)
    if is_weave(weave):
        return weave
    base = open_base(induction_base(plan), dtype="float32")
    if not (skill / "rows.jsonl").exists():
        random = Random(f"own {plan.settings.seed}")
        problems = list(islice(Problems(plan.settings).training(random), plan.own))
        rows = own_rows(asking(base), problems, plan.samples, random)
        write_text(skill / "rows.jsonl", "".join(json.dumps(one) + "\n" for one in rows))
    return skill_weave(weave, base, skill / "rows.jsonl", skill / "delta", plan)


def skill_weave(weave: Path, base: Base, rows: Path, run: Path, plan: SkillPlan, steps: int | None = None) -> Path:
    """Train the skill on a file of rows (once, or for ``steps`` steps), zip its delta, and write the weave."""
    config = SpecialiseConfig.model_validate(
        {
            "task": {"source": "file", "path": str(rows), "splits": {"calibration": 8, "test": 8}},
            "seed": plan.settings.seed,
            "rounds": 0,
            "probe_prompts": 8,
            "samples_per_prompt": 2,
            "max_new_tokens": 32,
            "max_length": SHAPE.context,
            "bf16": False,
            "warm_start": {
                "when": "always",
                "steps": steps,
                "epochs": 1,
                "batch_size": BATCH,
                "learning_rate": plan.rate,
            },
        }
    )
    delta = specialise(base, config, run)
    pack = zip_delta(delta, base, None, ZIP, name=SKILL, method="specialise", data=config.task.model_dump(mode="json"))
    return Weave.write(weave, base, {SKILL: pack})


def main(folder: str) -> None:
    """Make the weave, and print the rates of the base and of the pack on the held-out problems, family by family."""
    weave = Weave.from_pretrained(micro_weave(folder))
    problems = Problems(PLAN.settings).test

    def pack(prompts: Sequence[str], samples: int, seed: int) -> list[list[str]]:
        sampling = Sampling(max_new_tokens=32, temperature=1.0, batch_size=256, seed=seed)
        many = [prompt for prompt in prompts for _ in range(samples)]
        texts = [reply.text for reply in weave.generate(many, SKILL, sampling)]
        return [texts[at : at + samples] for at in range(0, len(texts), samples)]

    found = {}
    for name, ask in (("base", asking(open_base(induction_base(), dtype="float32"))), ("pack", pack)):
        for family in PLAN.settings.families:
            found[f"{name}, {family}"] = measure(ask, [one for one in problems if one.family.name == family])
            console.print(f"{name}, {family}: {found[f'{name}, {family}']}")
    write_json(Path(folder) / "rates.json", found)


if __name__ == "__main__":
    main(*sys.argv[1:])
