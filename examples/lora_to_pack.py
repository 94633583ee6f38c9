"""LoRA to pack: train a small adapter with PEFT, zip it into a skillpack, ask it, and export it again.

    python examples/lora_to_pack.py                                    train an adapter (about a minute), then zip it
    python examples/lora_to_pack.py --base ./base --lora ./my-adapter  zip an adapter that you have

The same on the command line: `skillweave zip --base ./base --lora ./my-adapter --budget 2MB -o packs/mine`. What PEFT
adapters can be read, and what a pack holds: docs/how-to/adapters.md and docs/how-to/zip.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from skillweave.base import Sampling, open_base
from skillweave.base.chat import answer_ids, prompt_ids
from skillweave.delta import Delta
from skillweave.pack import export_lora
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.tasks import Task, load_task
from skillweave.weave import Weave


def train_adapter(base: str, task: Task, folder: Path, steps: int) -> None:
    """Train a LoRA adapter on the task's gold answers and save it. Any other way to make one will do."""
    opened = open_base(base, dtype="float32")
    model = get_peft_model(opened.model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    examples = task.split("train")
    for step in range(steps):
        entry = examples[step % len(examples)]
        prompt = prompt_ids(opened.tokenizer, entry.prompt)
        answer = answer_ids(opened.tokenizer, entry.answer)
        ids = torch.tensor([[*prompt, *answer]])
        labels = torch.tensor([[-100] * len(prompt) + list(answer)])  # -100: no loss on the prompt
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="bundled:smollm2", help="a folder, a hub id, a GGUF file or bundled:smollm2")
    parser.add_argument("--lora", help="an adapter folder; without it, a small one is trained first")
    parser.add_argument("--steps", type=int, default=80, help="training steps of that small adapter")
    parser.add_argument("--out", type=Path, default=Path("runs/lora_to_pack"))
    options = parser.parse_args()

    task = load_task({"source": "builtin", "name": "sort_numbers", "config": {"order": "ascending", "most": 3}})
    if options.lora is None:
        options.lora = str(options.out / "adapter")
        train_adapter(options.base, task, Path(options.lora), options.steps)

    # The adapter becomes a delta on exactly this base: the fingerprint says which one that is.
    base = open_base(options.base)
    delta = Delta.from_lora(options.lora, base)

    # A byte budget, not a ratio: the ratio of a LoRA counts the full matrices that it changes.
    # None: no calibration prompts are needed.
    pack = zip_delta(delta, base, None, ZipConfig(budget="2MB"), name="sort", method="lora")
    pack.save_pretrained(options.out / "pack")
    print(f"pack: {pack.card.bytes.total:,} bytes, error of the weights {pack.card.codec.measured['weight_error']:.4f}")

    # One batch: the first row uses the pack, the second the plain base.
    weave = Weave.of(base, {"sort": pack})
    prompt = task.split("test")[0].prompt
    for reply in weave.generate([prompt, prompt], packs=["sort", None], sampling=Sampling(max_new_tokens=24)):
        print(f"{reply.pack or 'base'}: {reply.text}")

    # And back: an adapter that PEFT and vLLM load.
    export_lora(pack, options.out / "exported")
    print(f"exported: {options.out / 'exported'}")


if __name__ == "__main__":
    main()
