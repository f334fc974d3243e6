"""A file of ranks encodes as tiktoken encodes with it; a damaged one is refused."""

import base64
import random

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tiktoken_ranks import PATTERNS, from_ranks, looks_like_ranks, read_ranks
from peerformer.data.tokenizer import END_OF_TEXT, Tokenizer, train_tokenizer
from peerformer.errors import DataError

SEED = 11


def made_ranks() -> dict[bytes, int]:
    """The tokens of a trained vocabulary and some that no merge makes, in another order."""
    trained = train_tokenizer((d.text for d in synthetic_documents(3, 60)), 700)
    learned = [trained.token_bytes(token) for token in range(257, trained.vocab_size)]
    unreachable = [b" unreachable", b"xqzxqz", "\u65e5\u672c".encode()]
    tokens = [bytes((byte,)) for byte in range(256)]
    random.Random(SEED).shuffle(tokens)
    return {token: rank for rank, token in enumerate([*tokens, *learned, *unreachable])}


RANKS = made_ranks()
SPECIAL = {END_OF_TEXT: len(RANKS), "<|fim|>": len(RANKS) + 7}
FILE = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in RANKS.items())


def both(pattern: str) -> tuple[Tokenizer, tiktoken.Encoding]:
    theirs = tiktoken.Encoding(
        "made", pat_str=PATTERNS[pattern], mergeable_ranks=RANKS, special_tokens=SPECIAL
    )
    return from_ranks(read_ranks(FILE), pattern=pattern, special_tokens=SPECIAL), theirs


BOTH = {pattern: both(pattern) for pattern in PATTERNS}
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=100)
WORDS = st.lists(st.sampled_from(["Ada", "the", " ", "\n", "harbour", "123456", "it's", "\u65e5"]))


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(deadline=None, max_examples=50)  # the first example trains
@given(TEXTS | WORDS.map("".join))
def test_it_encodes_as_tiktoken_does(pattern: str, text: str) -> None:
    ours, theirs = BOTH[pattern]
    tokens = theirs.encode(text, disallowed_special=())
    assert ours.encode(text) == tokens and ours.decode(tokens) == text


@pytest.mark.parametrize("pattern", PATTERNS)
def test_whole_texts_and_words_that_no_merge_makes_are_encoded_alike(pattern: str) -> None:
    ours, theirs = BOTH[pattern]
    texts = [d.text for d in synthetic_documents(4, 20)]
    for text in [*texts, "an unreachable place", "xqzxqz", "\u65e5\u672c", "DON'T can't'Re", ""]:
        assert ours.encode(text) == theirs.encode(text, disallowed_special=())


def test_special_tokens_have_their_ids_and_no_text_becomes_one() -> None:
    ours, theirs = BOTH["gpt2"]
    assert ours.special_tokens == SPECIAL and ours.vocab_size == theirs.n_vocab
    assert ours.end_of_text_id == SPECIAL[END_OF_TEXT]
    hostile = f"a {END_OF_TEXT} b<|fim|>"
    assert ours.encode(hostile) == theirs.encode_ordinary(hostile)
    assert not set(ours.encode(hostile)) & set(SPECIAL.values())
    assert ours.byte_lengths_V()[SPECIAL["<|fim|>"]] == 0
    again = Tokenizer.from_bytes(ours.to_bytes())
    assert again.special_tokens == SPECIAL and again.encode(hostile) == ours.encode(hostile)


def test_an_end_of_text_is_added_where_none_is_given() -> None:
    assert from_ranks(RANKS, pattern="gpt2").end_of_text_id == len(RANKS)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"not base64!! 0\n" + FILE, "line 1 "),
        (FILE + b"eHF6 notanumber\n", "is not a token"),
        (FILE + b"eHF6\n", "is not a token"),
        (FILE + b" 5\n", "is not a token"),
        (FILE + b"eHF6eHE= 5\n", "a second time"),
        (FILE + b"eHF6eHE= 99999999999\n", "is not a token"),
        (FILE.split(b"\n", 1)[1], "have no rank"),
        (b"", "have no rank"),
        (b"\xff\xfe\x00", "is not a token"),
    ],
)
def test_a_damaged_file_of_ranks_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(DataError) as refused:
        read_ranks(data)
    assert why in str(refused.value)


def test_a_pattern_or_a_special_token_that_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="no regular expression"):
        from_ranks(RANKS, pattern="(")
    with pytest.raises(DataError, match="is that of another token"):
        from_ranks(RANKS, pattern="gpt2", special_tokens={"<|x|>": 3})
    with pytest.raises(DataError, match="would become that special token"):
        from_ranks(RANKS, pattern=r"\S+|\s+", special_tokens=SPECIAL)
    with pytest.raises(DataError, match="one id"):
        from_ranks(RANKS, pattern="gpt2", special_tokens={"<|x|>": 9_999, "<|y|>": 9_999})


def test_a_file_of_ranks_is_told_from_others() -> None:
    assert looks_like_ranks(FILE)
    for other in (b"", b"{}", b"\x0a\x0e\x0a\x05<unk>", b"a text of words"):
        assert not looks_like_ranks(other)
