"""Merged, the first keeps its ids; trimmed, the corpus is cut as before; both round trip."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tokenizer import Tokenizer, train_tokenizer
from peerformer.data.vocabulary import entries, kind_of, merge, trim
from peerformer.errors import DataError

KINDS = ("byte-bpe", "bpe", "unigram")
STORIES = [d.text for d in synthetic_documents(1, 60)]
OTHERS = ["completely different sentences, unlike the others, about sailing ships " * 9]
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=100)


@cache
def first(kind: str) -> Tokenizer:
    return train_tokenizer(STORIES, 640, kind=kind, special_tokens=["<|user|>"])


@cache
def second(kind: str) -> Tokenizer:
    return train_tokenizer(OTHERS, 400, kind=kind, special_tokens=["<|tool|>"])


@cache
def both(kind: str) -> Tokenizer:
    return merge(first(kind), second(kind))


@cache
def small(kind: str):
    used = {token for text in STORIES[:5] for token in first(kind).encode(text)}
    return trim(first(kind), used)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=50)  # the first example trains
@given(TEXTS)
def test_every_text_comes_back_from_every_kind_merged_or_trimmed(kind: str, text: str) -> None:
    for tokenizer in (first(kind), both(kind), small(kind).tokenizer):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        stream = tokenizer.stream()
        assert "".join(map(stream.feed, tokens)) + stream.finish() == text
        assert tokenizer.byte_lengths_V()[tokens].sum() == len(text.encode())


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_and_hostile_text_come_back_and_no_special_token_is_smuggled_in(kind) -> None:
    hostile = [
        "<|user|> <|endoftext|><|tool|>[USER] <|user|>" * 3,
        "<0x0A> <0xFF>\u2581\u0120 \u00c4\x00",
        "".join(map(chr, range(256))),
        "",
    ]
    for tokenizer in (first(kind), both(kind), small(kind).tokenizer):
        special = set(tokenizer.special_tokens.values())
        assert len(special) in (2, 3) and tokenizer.end_of_text_id in special
        for text in hostile:
            tokens = tokenizer.encode(text)
            assert tokenizer.decode(tokens) == text and not special & set(tokens)
        for byte in range(256):  # each is in the vocabulary by itself
            assert bytes((byte,)) in {tokenizer.token_bytes(t) for t in range(tokenizer.vocab_size)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_full_of_a_special_tokens_letters_does_not_teach_it(kind: str) -> None:
    texts = ["<|user|> says <|endoftext|> " * 50] * 4
    tokenizer = train_tokenizer(texts, 400, kind=kind, special_tokens=["<|user|>"])
    assert not set(tokenizer.special_tokens.values()) & set(tokenizer.encode(texts[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_merging_keeps_the_ids_of_the_first_and_adds_what_only_the_second_has(kind: str) -> None:
    one, other, merged = first(kind), second(kind), both(kind)
    assert all(merged.pieces()[piece] == token for piece, token in one.pieces().items())
    assert set(merged.pieces()) == set(one.pieces()) | set(other.pieces())
    assert sorted(merged.pieces().values()) == list(range(merged.vocab_size))
    assert set(merged.special_tokens) == {"<|endoftext|>", "<|user|>", "<|tool|>"}
    text = OTHERS[0][:70]
    assert len(merged.encode(text)) < len(one.encode(text)), "the second's pieces are used"
    assert merge(one, one).pieces() == one.pieces() and kind_of(merged) == kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_trimmed_vocabulary_cuts_its_corpus_as_before(kind: str) -> None:
    whole, trimmed = first(kind), small(kind)
    assert trimmed.tokenizer.vocab_size == len(trimmed.kept) < whole.vocab_size
    for text in STORIES[:5]:
        again = trimmed.tokenizer.encode(text)
        assert [trimmed.kept[token] for token in again] == whole.encode(text)
    for entry in entries(trimmed.tokenizer):
        former = trimmed.kept[entry.token]
        assert entry.data == whole.token_bytes(former)
    assert trimmed.tokenizer.special_tokens.keys() == whole.special_tokens.keys()


def test_kinds_that_cut_text_differently_are_not_merged() -> None:
    with pytest.raises(DataError, match="unigram vocabulary cannot be merged with a byte-bpe"):
        merge(first("unigram"), first("byte-bpe"))
    content = first("byte-bpe").to_bytes().replace(b'"use_regex": true', b'"use_regex": false')
    with pytest.raises(DataError, match="cut text in different ways"):
        merge(first("byte-bpe"), Tokenizer.from_bytes(content))


@pytest.mark.parametrize("token", ["USER", "<|>", "<a b>", "", "<|x", "***"])
def test_a_special_token_that_a_word_could_be_is_refused(token: str) -> None:
    with pytest.raises(DataError, match="cannot be a special token"):
        train_tokenizer(STORIES[:2], 400, special_tokens=[token])


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_too_small_for_the_bytes_is_refused_and_one_just_large_enough_works(
    kind: str,
) -> None:
    with pytest.raises(DataError, match="too small"):
        train_tokenizer(STORIES[:2], 257, kind=kind, special_tokens=["<|user|>"])
    least = train_tokenizer(STORIES[:2], 257, kind=kind)
    assert least.vocab_size == 257 and least.decode(least.encode(STORIES[0])) == STORIES[0]
