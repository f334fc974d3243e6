"""Shards are one array; damage is named; a set that travels as bytes is checked strictly."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerformer.data.shards import ShardSet, open_shards, write_shards
from peerformer.errors import DataError

DOCUMENTS = [([1, 2, 3], 5), ([4], 2), ([5, 6, 7, 8, 9], 9), ([], 0), ([1] * 20, 20)]


def written(directory: Path, shard_tokens: int = 6) -> ShardSet:
    return write_shards(
        DOCUMENTS, directory, vocab_size=300, end_of_text_id=0, shard_tokens=shard_tokens
    )


def test_windows_run_across_shards(tmp_path: Path) -> None:
    shards = written(tmp_path)
    whole = [token for tokens, _ in DOCUMENTS for token in [*tokens, 0]]
    assert len(shards.parts) > 2 and shards.num_tokens == len(whole) and shards.num_bytes == 36
    for start in range(len(whole)):
        for length in range(len(whole) - start + 1):
            assert shards.window(start, length).tolist() == whole[start : start + length]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "index"])
def test_damage_is_found_and_named(damage: str, tmp_path: Path) -> None:
    written(tmp_path)
    file = tmp_path / ("index.json" if damage == "index" else "shard-00001.bin")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(
            data[:-1] if damage == "cut" else bytes(data)[: 20 if damage == "index" else None]
        )
    with pytest.raises(DataError) as refused:
        open_shards(tmp_path, verify=True)
    assert file.name in str(refused.value) and "delete" in str(refused.value)


def test_a_set_travels_as_bytes(tmp_path: Path) -> None:
    shards = written(tmp_path)
    again = ShardSet.from_bytes(shards.to_bytes())
    assert again.window(0, again.num_tokens).tolist() == shards.window(0, again.num_tokens).tolist()
    assert again.to_bytes() == shards.to_bytes() and again.num_bytes == shards.num_bytes


@given(st.binary(max_size=200), st.integers(0, 10), st.booleans())
def test_hostile_bytes_are_refused(junk: bytes, cut: int, prefixed: bool) -> None:
    good = ShardSet((np.arange(9, dtype=np.uint16),), 9, 9, "").to_bytes()
    data = good[: len(good) - cut] + junk if prefixed else junk
    if data != good:
        with pytest.raises(DataError):
            ShardSet.from_bytes(data)


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    data = ShardSet((np.arange(9, dtype=np.uint16),), 5, 9, "").to_bytes()
    with pytest.raises(DataError, match="outside"):
        ShardSet.from_bytes(data)


@pytest.mark.parametrize(
    "changes", [{"tokens": 0}, {"tokens": -3}, {"tokens": 1e400}, {"file": "../x"}, {"file": 3}]
)
def test_an_index_with_impossible_entries_is_refused(
    changes: dict[str, object], tmp_path: Path
) -> None:
    written(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    index["shards"][0] |= changes
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "shard-00000.bin").write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        open_shards(tmp_path, verify=False)


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path: Path) -> None:
    for vocab_size, width in ((65_536, 2), (65_537, 4)):
        directory = tmp_path / str(width)
        shards = write_shards(
            [([vocab_size - 1], 1)], directory, vocab_size=vocab_size, end_of_text_id=0
        )
        assert shards.window(0, 2).tolist() == [vocab_size - 1, 0]
        assert (directory / "shard-00000.bin").stat().st_size == 2 * width
        assert ShardSet.from_bytes(shards.to_bytes()).window(0, 1).tolist() == [vocab_size - 1]
