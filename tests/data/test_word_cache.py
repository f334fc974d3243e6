"""Words that are looked up have the tokens that the tokenizer gives to the whole text."""

from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peerformer.data import word_cache
from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tokenizer import Tokenizer, train_tokenizer
from peerformer.data.word_cache import WordEncoder, divides_at_space
from peerformer.data.words_seen import WordsInC, WordsInPython, functions_in_c

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
def encoder(*, compiled: bool) -> WordEncoder:
    made = WordEncoder(tokenizer())
    if compiled:
        made._characters = word_cache.COMPILED_CHARACTERS_LEAST
        made._forget()
        assert isinstance(made._words, WordsInC)
    return made


@pytest.fixture(params=[False, True], ids=["in Python", "in C"])
def compiled(request: pytest.FixtureRequest) -> bool:
    if request.param and functions_in_c() is None:
        pytest.skip("there is no C compiler")
    return bool(request.param)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS, max_size=4))
def test_the_tokens_are_those_of_the_whole_text(compiled: bool, texts: list[str]) -> None:
    assert encoder(compiled=compiled).is_by_words
    found = [tokens.tolist() for tokens in encoder(compiled=compiled).encode_documents(texts)]
    assert found == [tokenizer().encode(text) for text in texts]


def test_a_long_text_goes_on_in_c_with_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [document.text for document in synthetic_documents(4, 60)]
    expected = [tokenizer().encode(text) for text in texts]
    monkeypatch.setattr(word_cache, "BATCH_CHARACTERS", 500)
    monkeypatch.setattr(word_cache, "COMPILED_CHARACTERS_LEAST", 2_000)
    long = WordEncoder(tokenizer())
    assert isinstance(long._words, WordsInPython)
    found = [tokens.tolist() for tokens in long.encode_documents(texts)]
    assert found == expected
    assert functions_in_c() is None or isinstance(long._words, WordsInC)


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
