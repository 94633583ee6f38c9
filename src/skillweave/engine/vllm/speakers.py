"""How prompts are written for an exported folder and answers read, from its files alone: no weights are opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skillweave.base import Checkpoint, open_tokenizer
from skillweave.base.chat import PromptOrIds
from skillweave.base.defaults import generation_config_at
from skillweave.base.generate import AnswerReader, encode_prompts
from skillweave.base.sizes import context_length, embedding_rows
from skillweave.base.voice import Voice
from skillweave.delta.carry import GENERATION_FILE, VOCABULARY_FILES
from skillweave.engine.vllm.folder import VllmFolder


@dataclass(frozen=True)
class VllmSpeaker:
    """The voice of one pack (or of the plain base): its tokenizer, its end tokens and the reader of its answers."""

    voice: Voice
    stops: tuple[int, ...]
    reader: AnswerReader


class Speakers:
    """The voices of an exported folder. The base's model is only a skeleton without weights."""

    def __init__(self, folder: VllmFolder) -> None:
        self._model = Checkpoint(folder.base).skeleton
        if (folder.base / GENERATION_FILE).is_file():
            self._model.generation_config = generation_config_at(folder.base)
        self._tokenizer = open_tokenizer(folder.base)
        self.context_length = context_length(self._model)
        self.rows: int = embedding_rows(self._model)
        self._speakers: dict[str | None, VllmSpeaker] = {None: self._speaker(Voice(self._tokenizer))}
        for name in folder.card.packs:
            place = folder.adapter(name)
            own = any((place / file).is_file() for file in VOCABULARY_FILES)
            tokenizer = open_tokenizer(place) if own else self._tokenizer
            if own:
                tokenizer.travels_with = f"the pack '{name}'"  # what errors call the template
            generation = generation_config_at(place) if (place / GENERATION_FILE).is_file() else None
            self._speakers[name] = self._speaker(Voice(tokenizer, generation))

    def _speaker(self, voice: Voice) -> VllmSpeaker:
        # vLLM has no rows for tokens that only a tokenizer has, and refuses their ids.
        stops = tuple(stop for stop in voice.stops(self._model) if stop < self.rows)
        return VllmSpeaker(voice, stops, AnswerReader(voice.tokenizer))

    def __getitem__(self, pack: str | None) -> VllmSpeaker:
        return self._speakers[pack]

    def encode(self, prompt: PromptOrIds, pack: str | None) -> Sequence[int]:
        """Return a prompt as tokens. Raises :class:`UserError` for one that does not fit into the base's context."""
        voice: Any = self._speakers[pack].voice
        (ids,) = encode_prompts(self._model, self._tokenizer, [prompt], [voice])
        return ids
