"""A SentencePiece model encodes as the sentencepiece package does; a damaged one is refused."""

import io
import random
from functools import cache

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.data.sentencepiece_model import from_sentencepiece, read_model
from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tokenizer import Tokenizer
from peerformer.errors import DataError

LINES = [line for d in synthetic_documents(1, 150) for line in d.text.splitlines() if line]
IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
WAYS = {
    "bpe": {"model_type": "bpe", "byte_fallback": True},
    "bpe as Llama 2": {"model_type": "bpe", "byte_fallback": True, **IDENTITY},
    "bpe without a first space": {
        "model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False,
    },
    "bpe that knows no bytes": {"model_type": "bpe"},
    "unigram": {"model_type": "unigram", "byte_fallback": True},
    "unigram as it was": {"model_type": "unigram", "byte_fallback": True, **IDENTITY},
}  # fmt: skip


@cache
def made(way: str, **more: object) -> bytes:
    out = io.BytesIO()
    settings = {"vocab_size": 640, "minloglevel": 2, "hard_vocab_limit": False, **WAYS[way]}
    if settings["model_type"] == "bpe":
        del settings["hard_vocab_limit"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=out, **settings, **more
    )
    return out.getvalue()


@cache
def both(way: str) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    data = made(way)
    return from_sentencepiece(data), sentencepiece.SentencePieceProcessor(model_proto=data)


# Marks are left out: docs/tokenizers.md has what is lost where one follows a compatibility letter.
MARKS = ["Mn", "Mc", "Me"]
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc", *MARKS]), max_size=60)
SPACED = st.text("abcdehs \n\t<0xA>\u2581\ufb01\u2460\u65e5", max_size=40)


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None, max_examples=50)  # the first example trains
@given(TEXTS | SPACED)
def test_any_text_is_encoded_alike(way: str, text: str) -> None:
    ours, theirs = both(way)
    assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("way", WAYS)
def test_real_text_is_encoded_and_decoded_alike(way: str) -> None:
    ours, theirs = both(way)
    words = " ".join(LINES).split()
    mixed = [" ".join(random.Random(seed).choices(words, k=9)) for seed in range(100)]
    for text in [*LINES[:200], *mixed, "", "  ", " leads", "trails ", "two  spaces"]:
        tokens = theirs.encode(text)
        assert ours.encode(text) == tokens
        if "bytes" not in way:
            assert ours.decode(tokens) == theirs.decode(tokens)


@pytest.mark.parametrize("way", [way for way in WAYS if "bytes" not in way])
def test_no_text_becomes_a_special_piece_or_a_byte(way: str) -> None:
    ours, theirs = both(way)
    special = {theirs.unk_id(), theirs.bos_id(), theirs.eos_id()}
    for text in ("<s> </s> <unk>", "a<0x0A>b", "</s>", "<0x41>"):
        tokens = ours.encode(text)
        assert not special & set(tokens) and ours.decode(tokens) == text
    assert set(ours.special_tokens.values()) == special
    assert ours.end_of_text_id == theirs.eos_id()


def test_tokens_stream_to_the_text_and_have_its_bytes() -> None:
    ours, _ = both("bpe as Llama 2")
    text = "Ada walked \u65e5\u672c\n\tto the harbour"
    stream, tokens = ours.stream(), ours.encode(text)
    assert "".join(map(stream.feed, tokens)) + stream.finish() == " " + text
    assert ours.byte_lengths_V()[tokens].sum() == len(text.encode()) + 1


def test_symbols_of_the_users_own_stay_whole() -> None:
    data = made("bpe", user_defined_symbols="<sep>,harbourx")
    ours, theirs = from_sentencepiece(data), sentencepiece.SentencePieceProcessor(model_proto=data)
    sep = theirs.piece_to_id("<sep>")
    assert sep in ours.encode("Ada<sep>Boris") and ours.token_bytes(sep) == b"<sep>"


@pytest.mark.parametrize("junk", [b"", b"\x00", b"{}", b"\xff" * 40, b"some text", b"\x0a\x7fabc"])
def test_what_is_no_model_is_refused(junk: bytes) -> None:
    with pytest.raises(DataError):
        from_sentencepiece(junk)


def test_a_damaged_model_is_refused_or_still_a_model() -> None:
    data = made("unigram")
    with pytest.raises(DataError, match="cannot be read"):
        from_sentencepiece(data[: len(data) // 2])
    generator = random.Random(7)
    refused = 0
    for _ in range(150):
        wrong = bytearray(data)
        for _ in range(3):
            wrong[generator.randrange(len(wrong))] ^= 1 << generator.randrange(8)
        try:
            from_sentencepiece(bytes(wrong)).encode("Ada")
        except DataError:
            refused += 1
    assert refused, "seed 7"


def test_a_model_of_words_is_refused() -> None:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=out, model_type="word", vocab_size=40,
        minloglevel=2,
    )  # fmt: skip
    with pytest.raises(DataError, match="words or characters"):
        read_model(out.getvalue())
