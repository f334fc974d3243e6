"""Words that are looked up have the tokens that the tokenizer gives to the whole text."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.data import word_cache
from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tokenizer import Tokenizer, train_tokenizer
from peerformer.data.word_cache import WordEncoder, divides_at_space

# Whatever a tokenizer's expression treats apart: contractions, spaces of all kinds, marks, signs.
SPECIAL = (
    "abz'tTsS dDmM rveRVEl19 \t\n\r\x0b\x1c\x1f\x85\xa0\u3000\u2028_-.,!\u00e9\u0301\u00b2\u4e2d"
)
TEXTS = st.one_of(
    st.text(alphabet=SPECIAL, max_size=40),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40),
)


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer((document.text for document in synthetic_documents(1, 50)), 400)


@cache
def encoder() -> WordEncoder:
    return WordEncoder(tokenizer())


@settings(max_examples=400)
@given(st.lists(TEXTS, max_size=4))
def test_the_tokens_are_those_of_the_whole_text(texts: list[str]) -> None:
    assert encoder().is_by_words
    found = [tokens.tolist() for tokens in encoder().encode_documents(texts)]
    assert found == [tokenizer().encode(text) for text in texts]


def test_a_full_cache_begins_anew_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "WORDS_MAX", 20)
    monkeypatch.setattr(word_cache, "BATCH_CHARACTERS", 500)
    texts = [document.text for document in synthetic_documents(3, 30)]
    found = WordEncoder(tokenizer()).encode_documents(texts)
    assert [tokens.tolist() for tokens in found] == [tokenizer().encode(text) for text in texts]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_of_another_kind_encodes_whole_texts(kind: str) -> None:
    texts = [document.text for document in synthetic_documents(2, 40)]
    other = train_tokenizer(texts, 700, kind=kind)
    assert not divides_at_space(other)
    found = WordEncoder(other).encode_documents(texts[:5])
    assert [tokens.tolist() for tokens in found] == [other.encode(text) for text in texts[:5]]
