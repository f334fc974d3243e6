"""Shards are one array; damage is named; a set that travels as bytes is checked strictly."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerformer.data.shards import Encoded, ShardSet, open_shards, write_shards
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


MASKED = [
    Encoded([1, 2, 3], 5, np.array([False, True, True, True])),
    Encoded([4], 2),
    Encoded([5, 6, 7, 8, 9], 9, np.array([False] * 5 + [True])),
    Encoded([1] * 20, 20),
]
LEARNED = [False, True, True, True, True, True] + [False] * 5 + [True] * 22


@pytest.mark.parametrize("shard_tokens", [1, 6, 100])
def test_masks_lie_beside_the_shards_that_need_one(shard_tokens: int, tmp_path: Path) -> None:
    shards = write_shards(
        MASKED, tmp_path, vocab_size=300, end_of_text_id=0, shard_tokens=shard_tokens
    )
    again = ShardSet.from_bytes(shards.to_bytes())
    for made in (shards, again, open_shards(tmp_path, verify=True)):
        assert made.is_masked
        for start in range(len(LEARNED)):
            for length in range(len(LEARNED) - start + 1):
                assert made.learned(start, length).tolist() == LEARNED[start : start + length]
    assert again.to_bytes() == shards.to_bytes()
    assert len(list(tmp_path.glob("mask-*"))) == {1: 2, 6: 2, 100: 1}[shard_tokens]


def test_shards_without_masks_are_what_they_were(tmp_path: Path) -> None:
    shards = written(tmp_path)
    assert not shards.is_masked and not list(tmp_path.glob("mask-*"))
    assert "mask" not in (tmp_path / "index.json").read_text()
    assert shards.to_bytes().startswith(b"pfshard1") and shards.learned(0, 5).all()
    # What the first version of this format gave.
    assert shards.digest == "f2303919103411918213eaf06d9280dc687c246bf5d4278214a93ffa9fe5752d"


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_mask_is_found_and_named(damage: str, tmp_path: Path) -> None:
    write_shards(MASKED, tmp_path, vocab_size=300, end_of_text_id=0)
    file = tmp_path / "mask-00000.bin"
    data = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(data[:-1] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(DataError, match="damaged") as refused:
        open_shards(tmp_path, verify=True)
    assert file.name in str(refused.value)


def test_a_set_with_a_mask_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    data = write_shards(MASKED, tmp_path, vocab_size=300, end_of_text_id=0).to_bytes()
    for wrong in (data[:-1], data + b"\x00"):
        with pytest.raises(DataError, match="cut short"):
            ShardSet.from_bytes(wrong)
