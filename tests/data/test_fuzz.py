"""Whatever bytes come as a token set, they are the one encoding of it or a told error.

One slice of the deep test alone:

    PEERFORMER_SEEDS=17:18 python -m pytest -m deep tests/data/test_fuzz.py
"""

from random import Random

import numpy as np
import pytest

from peerformer.data.shards import ShardSet
from peerformer.errors import DataError
from tests.mutations import mutate, seeds

HEAD_BYTES = 28  # magic, vocabulary, bytes of text, tokens


def token_set(random: Random) -> bytes:
    """A well-formed token set, of two or four bytes a token."""
    vocab_size = random.choice((1, 2, 300, 65_535, 65_536, 65_537, 2**32 - 1))
    tokens = [random.randrange(vocab_size) for _ in range(random.choice((0, 1, 3, 20)))]
    part = np.array(tokens, np.uint32)
    return ShardSet((part,), vocab_size, random.choice((0, 9, 2**64 - 1)), "").to_bytes()


def try_token_sets(seed: int, count: int) -> None:
    print(f"seed {seed}")
    random = Random(seed)
    for _ in range(count):
        good, other = token_set(random), token_set(random)
        data = mutate(good, other, random)
        if random.random() < 0.5:
            data = mutate(good[:HEAD_BYTES], other[:HEAD_BYTES], random) + good[HEAD_BYTES:]
        try:
            read = ShardSet.from_bytes(data)
        except DataError:
            continue
        assert read.to_bytes() == data, (seed, data.hex())
        assert all(0 <= token < read.vocab_size for token in read.window(0, read.num_tokens))


def test_a_damaged_token_set_is_refused_or_the_one_encoding_of_another() -> None:
    for seed in range(50):
        good = token_set(Random(seed))
        assert ShardSet.from_bytes(good).to_bytes() == good
    try_token_sets(1_000_000, 1_000)


@pytest.mark.deep
@pytest.mark.parametrize("seed", seeds("0:100"))
def test_a_slice_of_damaged_token_sets(seed: int) -> None:
    try_token_sets(seed, 1_000)
