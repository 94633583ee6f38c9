"""Text in pieces: the pieces join to the whole, and no character is cut."""

from __future__ import annotations

from random import Random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from skillweave.base.generate import AnswerReader
from skillweave.engine.generation import Pieces, StopText

TEXTS = ["plain", "año 漢字 x", "🙂🙃 a 👩‍👩‍👧 b", " leads and trails ", "a  b\n\n c", "é" * 5, ""]


def of_bytes() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each byte, as byte-level BPE without merges."""
    vocabulary = {one: at for at, one in enumerate(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def of_words() -> PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece makes them: spaces are part of tokens, and rare characters become bytes."""
    words = ["<end>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127)), "\n"]
    vocabulary = {one: at for at, one in enumerate(words)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="<unk>")


@pytest.mark.parametrize("tokenizer", [of_bytes(), of_words()], ids=["bytes", "words"])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_no_character_is_cut(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    reader = AnswerReader(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rng = Random(len(text))
    for most in (1, 3, 50):
        pieces, found, at = Pieces(reader), [], 0
        while at < len(ids):
            step = rng.randint(1, most)
            found.append(pieces.add(ids[at : at + step]))
            at += step
        found.append(pieces.rest())
        assert "".join(found) == reader.read(ids)
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)
        assert most > 1 or len([piece for piece in found if piece]) >= len(text) // 2


def test_an_answer_cut_off_inside_a_character_is_whole_at_the_end() -> None:
    tokenizer = of_bytes()
    reader, ids = AnswerReader(tokenizer), tokenizer("ab漢")["input_ids"][:-1]
    pieces = Pieces(reader)
    found = [pieces.add([one]) for one in ids] + [pieces.rest()]
    assert found == ["a", "b", "", "", "\N{REPLACEMENT CHARACTER}"]
    assert "".join(found) == reader.read(ids)


def test_special_tokens_are_not_in_the_pieces() -> None:
    tokenizer = of_words()
    pieces = Pieces(AnswerReader(tokenizer))
    ids = tokenizer("a b", add_special_tokens=False)["input_ids"]
    assert "".join(pieces.add([one, 0]) for one in ids) + pieces.rest() == "a b"


@pytest.mark.parametrize(
    ("stop", "pieces", "text", "matched"),
    [
        (["."], ["a", "b.", "c"], "ab", "."),
        (["END"], ["x E", "N", "D y"], "x ", "END"),
        (["END"], ["x E", "N", "x"], "x ENx", None),
        (["END"], ["x EN"], "x EN", None),
        (["aab"], ["a", "a", "a", "b"], "a", "aab"),
        (["bc", "abcd"], ["ab", "cd"], "a", "bc"),
        (["ab", "abc"], ["abc"], "", "ab"),
        ([""], ["abc"], "abc", None),
        ([], ["a", "b"], "ab", None),
    ],
)
def test_text_ends_before_the_first_stop_string(
    stop: list[str], pieces: list[str], text: str, matched: str | None
) -> None:
    found = StopText(stop)
    shown = [found.add(piece) for piece in pieces]
    for at in range(len(shown)):  # nothing is shown that would have to be taken back
        assert text.startswith("".join(shown[: at + 1]))
    assert "".join(shown) + found.add("", complete=True) == text
    assert found.matched == matched


def test_stop_strings_are_found_however_the_text_is_cut() -> None:
    rng = Random(0)
    for _ in range(500):
        whole = "".join(rng.choices("ab", k=rng.randrange(13)))
        stop = ["".join(rng.choices("ab", k=rng.randint(1, 3))) for _ in range(rng.randrange(4))]
        width, found = rng.randint(1, 4), StopText(stop)
        shown = "".join(found.add(whole[at : at + width]) for at in range(0, len(whole), width))
        shown += found.add("", complete=True)
        ends = [(whole.find(one) + len(one), whole.find(one)) for one in stop if one in whole]
        assert shown == whole[: min(ends)[1] if ends else len(whole)]
