"""Open a base model, read its tensors one at a time, compute its fingerprint, and generate answers."""

from skillweave.base.chat import Answer, Message, Prompt, answer_ids, answer_text, prompt_ids, prompt_text
from skillweave.base.checkpoint import Checkpoint
from skillweave.base.ends import stop_tokens, turn_end
from skillweave.base.fingerprint import fingerprint
from skillweave.base.generate import Generated, Sampling, generate, generate_answers
from skillweave.base.open import Base, open_base, open_tokenizer, resolve

__all__ = [
    "Answer",
    "Base",
    "Checkpoint",
    "Generated",
    "Message",
    "Prompt",
    "Sampling",
    "answer_ids",
    "answer_text",
    "fingerprint",
    "generate",
    "generate_answers",
    "open_base",
    "open_tokenizer",
    "prompt_ids",
    "prompt_text",
    "resolve",
    "stop_tokens",
    "turn_end",
]
