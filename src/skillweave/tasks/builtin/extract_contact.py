"""Extract name, e-mail and telephone number from a sentence about a person, as one line."""

from __future__ import annotations

from random import Random

from skillweave.config import Config
from skillweave.tasks.builtin.kind import Builtin
from skillweave.tasks.builtin.words import FIRST_NAMES, LAST_NAMES, WORDS

_SENTENCES = (
    "{name} can be reached at {email} or {phone}.",
    "Call {phone} and ask for {name}, or write to {email}.",
    "Our new designer is {name}; the mail is {email}, the phone {phone}.",
    "Please send the invoice to {email}, attention {name}, and confirm by phone: {phone}.",
    "I met {name} at the fair. Phone {phone}, mail {email}.",
    "For tickets, mail {email} or ring {name} on {phone}.",
    "If {phone} is busy, {name} also reads {email}.",
    "The keys are with {name} ({phone}, {email}).",
    "You wanted {name}'s details: {email} and {phone}.",
    "Mail for {name} goes to {email}. The number is {phone}.",
)


class ExtractContactSettings(Config):
    """Settings of ``extract_contact``: there are none."""


def make(rng: Random, settings: ExtractContactSettings) -> tuple[str, str]:
    """``... Ada Reed can be reached at ada@tower.org or 555-0134.`` -> ``Ada Reed; ada@tower.org; 555-0134``."""
    first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
    user = rng.choice((first, f"{first}.{last}", f"{first[0]}{last}", last)).lower()
    email = f"{user}@{rng.choice(WORDS)}.{rng.choice(('com', 'net', 'org', 'io'))}"
    phone = f"555-{rng.randint(0, 9999):04d}"
    name = f"{first} {last}"
    sentence = rng.choice(_SENTENCES).format(name=name, email=email, phone=phone)
    return f'Write the contact as "name; email; phone": {sentence}', f"{name}; {email}; {phone}"


BUILTIN = Builtin(ExtractContactSettings, make, "exact")
