"""(seed, step, slot) -> batch: each window once an epoch, in an order that nobody stores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerformer.data.batches import Batches, _permuted
from peerformer.data.shards import ShardSet
from peerformer.errors import DataError


def batches(tokens: int, length: int) -> Batches:
    return Batches(ShardSet((np.arange(tokens, dtype=np.uint16),), 65_536, tokens, ""), length)


@given(st.integers(1, 500), st.binary(min_size=32, max_size=32))
def test_the_order_is_a_permutation(size: int, key: bytes) -> None:
    assert sorted(_permuted(index, size, key) for index in range(size)) == list(range(size))


@pytest.mark.parametrize(("tokens", "length", "size"), [(1_000, 10, 4), (257, 16, 3), (33, 16, 2)])
def test_every_window_is_seen_once_an_epoch(tokens: int, length: int, size: int) -> None:
    text = batches(tokens, length)
    epochs: dict[int, list[int]] = {}
    for position in range(3 * text.num_windows):
        step, slot = divmod(position, size)
        start = int(text.sequence(7, step, slot, size).tokens[0])
        epochs.setdefault(position // text.num_windows, []).append(start)
    for starts in epochs.values():
        assert len(set(starts)) == text.num_windows
        assert {(start - min(starts)) % length for start in starts} == {0}
    assert epochs[0] != epochs[1]


def test_a_batch_is_its_slots_and_targets_follow_tokens() -> None:
    text = batches(1_000, 10)
    whole = text.batch(3, 5, batch_size=6)
    part = text.batch(3, 5, batch_size=6, slots=range(2, 4))
    assert whole.tokens_BT.shape == (6, 10)
    assert whole.tokens_BT[2:4].tolist() == part.tokens_BT.tolist()
    assert (whole.targets_BT - whole.tokens_BT).unique().tolist() == [1]
    assert text.batch(4, 5, batch_size=6).tokens_BT.tolist() != whole.tokens_BT.tolist()


def test_validation_is_fixed_and_spread() -> None:
    windows = batches(1_000, 10).validation(5)
    assert [int(window.tokens[0]) for window in windows] == [0, 190, 390, 590, 790]


def test_too_little_text_is_refused() -> None:
    with pytest.raises(DataError, match="only 10 tokens"):
        batches(10, 10)
