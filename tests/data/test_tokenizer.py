"""Any text comes back; tokens stand for known bytes; a bad file is refused."""

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from peerformer.errors import DataError

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200)


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer((d.text for d in synthetic_documents(1, 50)), 400)


@given(TEXTS)
def test_every_text_comes_back(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text)) == text


@given(TEXTS)
def test_streaming_gives_the_same_text_and_never_half_a_character(text: str) -> None:
    stream = tokenizer().stream()
    pieces = [stream.feed(token) for token in tokenizer().encode(text)]
    assert "".join(pieces) + stream.finish() == text


@given(TEXTS)
def test_the_bytes_of_tokens_add_up_to_the_bytes_of_the_text(text: str) -> None:
    lengths = tokenizer().byte_lengths_V()
    assert sum(int(lengths[token]) for token in tokenizer().encode(text)) == len(text.encode())


def test_a_text_cannot_smuggle_the_end_of_text_in() -> None:
    tokens = tokenizer().encode("before <|endoftext|> after")
    assert tokenizer().end_of_text_id not in tokens


def test_many_documents_are_encoded_as_one_by_one() -> None:
    texts = [d.text for d in synthetic_documents(2, 20)]
    together = tokenizer().encode_documents(texts)
    assert [one.tolist() for one in together] == [tokenizer().encode(text) for text in texts]


def test_a_saved_tokenizer_is_the_same_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    tokenizer().save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path)
    assert again.digest() == tokenizer().digest() and again.encode("Ada") == tokenizer().encode(
        "Ada"
    )
    (tmp_path / "tokenizer.json").write_bytes(tokenizer().to_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path / "nowhere.json")
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unknown"}}')
    with pytest.raises(DataError):
        load_tokenizer(tmp_path)
