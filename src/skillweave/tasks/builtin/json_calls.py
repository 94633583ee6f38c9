"""Turn a request in plain English into one function call, written as compact JSON.

The catalogue has eight functions. The prompt lists their names and parameters only with ``describe``; without it, the
model has to learn them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from pydantic import Field

from skillweave.config import Config
from skillweave.tasks.builtin.kind import Builtin
from skillweave.tasks.builtin.words import FIRST_NAMES, WORDS

_CITY_NAMES = """
Berlin Cairo Chicago Delhi Dublin Geneva Havana Lagos Lima Lisbon London Madrid Mumbai Nairobi Oslo Paris Prague
Quito Rome Seoul Sydney Tokyo Toronto Vienna Warsaw Zurich
"""
_CITIES = tuple(_CITY_NAMES.split())
_CURRENCIES = {"dollars": "USD", "euros": "EUR", "pounds": "GBP", "yen": "JPY", "francs": "CHF", "rupees": "INR"}
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_DEVICES = ("fan", "heater", "lamp", "oven", "radio", "sprinkler", "television", "vacuum")
_ROOMS = ("attic", "basement", "bathroom", "bedroom", "garage", "garden", "hall", "kitchen", "office")
_GENRES = ("blues", "classical", "country", "folk", "funk", "jazz", "metal", "pop", "reggae", "rock", "soul", "techno")
_EVENTS = ("breakfast", "checkup", "dinner", "interview", "lecture", "lunch", "meeting", "party", "practice", "recital")
_TEXTS = (
    "I am on my way", "call me back", "dinner is ready", "happy birthday", "I will be late", "see you tomorrow",
    "thank you so much", "the meeting is over", "the train is late", "where are you", "good luck today",
    "please bring some {word}", "I found your {word}", "do not forget the {word}", "the {word} looks great",
)  # fmt: skip


@dataclass(frozen=True)
class _Function:
    """One function of the catalogue.

    ``arguments`` draws the values of one call. The phrasings refer to them by name; a value whose name begins with
    ``_`` appears in phrasings only, not in the call.
    """

    arguments: Callable[[Random], dict[str, Any]]
    phrasings: tuple[str, ...]


def _timer(rng: Random) -> dict[str, Any]:
    return {"minutes": rng.randint(1, 120)}


def _message(rng: Random) -> dict[str, Any]:
    return {"to": rng.choice(FIRST_NAMES), "text": rng.choice(_TEXTS).format(word=rng.choice(WORDS))}


def _music(rng: Random) -> dict[str, Any]:
    return {"genre": rng.choice(_GENRES), "volume": rng.randint(1, 10)}


def _convert(rng: Random) -> dict[str, Any]:
    have, want = rng.sample(sorted(_CURRENCIES), 2)
    spoken = {"_from": have, "_to": want}
    return {"amount": rng.randint(2, 999), "from": _CURRENCIES[have], "to": _CURRENCIES[want], **spoken}


def _weather(rng: Random) -> dict[str, Any]:
    return {"city": rng.choice(_CITIES), "day": rng.choice(_DAYS)}


def _event(rng: Random) -> dict[str, Any]:
    hour = rng.randint(7, 21)
    half = "am" if hour < 12 else "pm"
    spoken = {"_time": f"{(hour - 1) % 12 + 1} {half}", "_with": rng.choice(FIRST_NAMES)}
    title = f"{rng.choice(_EVENTS)} with {spoken['_with']}"
    return {"title": title, "day": rng.choice(_DAYS), "time": f"{hour:02d}:00", **spoken}


def _device(rng: Random) -> dict[str, Any]:
    return {"device": rng.choice(_DEVICES), "room": rng.choice(_ROOMS)}


def _distance(rng: Random) -> dict[str, Any]:
    start, end = rng.sample(_CITIES, 2)
    return {"from": start, "to": end}


CATALOGUE: dict[str, _Function] = {
    "set_timer": _Function(
        _timer,
        (
            "Set a timer for {minutes} minutes.",
            "Wake me in {minutes} minutes.",
            "Let me know when {minutes} minutes have passed.",
            "The eggs need {minutes} minutes, keep an eye on the time.",
            "Start counting down {minutes} minutes please.",
        ),
    ),
    "send_message": _Function(
        _message,
        (
            'Tell {to} "{text}".',
            'Send {to} a message: "{text}".',
            'Write "{text}" to {to}.',
            'Could you text {to} that "{text}"?',
            'Let {to} read this: "{text}".',
        ),
    ),
    "play_music": _Function(
        _music,
        (
            "Play some {genre} at volume {volume}.",
            "I feel like {genre}, volume {volume}.",
            "Put on {genre} music, loudness {volume} of 10.",
            "Volume {volume} please, and something from {genre}.",
            "Can we hear {genre} at level {volume}?",
        ),
    ),
    "convert_currency": _Function(
        _convert,
        (
            "How many {_to} are {amount} {_from}?",
            "Convert {amount} {_from} to {_to}.",
            "I have {amount} {_from} and need {_to}.",
            "What do I get in {_to} for {amount} {_from}?",
            "Change {amount} {_from} into {_to} for me.",
        ),
    ),
    "get_weather": _Function(
        _weather,
        (
            "What will the weather be in {city} on {day}?",
            "Do I need an umbrella in {city} on {day}?",
            "{day} in {city}: sun or rain?",
            "Give me the forecast for {city}, {day}.",
            "How warm does {city} get on {day}?",
        ),
    ),
    "create_event": _Function(
        _event,
        (
            "Put {title} in my calendar, {day} at {_time}.",
            "Schedule {title} for {day} at {_time}.",
            "On {day} at {_time} I have {title}, note it down.",
            "Please plan {title}: {day}, {_time}.",
            "Add {title} at {_time} on {day}.",
        ),
    ),
    "turn_on_device": _Function(
        _device,
        (
            "Turn on the {device} in the {room}.",
            "Switch the {room} {device} on.",
            "I want the {device} in the {room} running.",
            "Start the {device} in the {room}, please.",
            "The {device} in the {room} should be on.",
        ),
    ),
    "get_distance": _Function(
        _distance,
        (
            "How far is it from {from} to {to}?",
            "What is the distance between {from} and {to}?",
            "I drive from {from} to {to}. How long is the way?",
            "Kilometres from {from} to {to}?",
            "{to} is how far away from {from}?",
        ),
    ),
}


class JsonCallsSettings(Config):
    """Settings of ``json_calls``."""

    describe: bool = Field(
        False, description="list the eight functions with their parameters in the prompt (about 60 tokens more)"
    )


def _signatures() -> str:
    lists = {name: [key for key in f.arguments(Random(0)) if key[0] != "_"] for name, f in CATALOGUE.items()}
    return ", ".join(f"{name}({', '.join(keys)})" for name, keys in lists.items())


def make(rng: Random, settings: JsonCallsSettings) -> tuple[str, str]:
    """``... Wake me in 5 minutes.`` -> ``{"name":"set_timer","arguments":{"minutes":5}}``."""
    name = rng.choice(sorted(CATALOGUE))
    values = CATALOGUE[name].arguments(rng)
    request = rng.choice(CATALOGUE[name].phrasings).format(**values)
    arguments = {key: value for key, value in values.items() if key[0] != "_"}
    answer = json.dumps({"name": name, "arguments": arguments}, separators=(",", ":"))
    functions = f"Functions: {_signatures()}\n" if settings.describe else ""
    return f"{functions}Write the function call as JSON: {request}", answer


BUILTIN = Builtin(JsonCallsSettings, make, "json")
