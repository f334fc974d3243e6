"""Text in, documents out: cleaned, cut, and what cannot be read is named."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerformer.data.documents import (
    clean,
    cut,
    default_documents,
    default_text_cache,
    read_documents,
)
from peerformer.data.synthetic import synthetic_documents
from peerformer.errors import DataError


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@given(st.text(alphabet="ab \n", max_size=400), st.integers(8, 64))
def test_cutting_loses_nothing_but_blank_ends(text: str, size: int) -> None:
    pieces = list(cut(text, size))
    assert all(len(piece) <= size for piece in pieces)
    assert text.startswith("".join(pieces)) and not text[len("".join(pieces)) :].strip()


def test_a_folder_is_read_in_order_and_what_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second\r\nline\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.md").write_text("first")
    (tmp_path / "c.bin").write_bytes(b"\x00\x01binary")
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\xfa broken")
    (tmp_path / "e.txt").write_text("")
    (tmp_path / ".hidden").write_text("secret")
    skipped: list[tuple[str, str]] = []
    documents = list(read_documents(tmp_path, max_bytes=10_000, skipped=skipped))
    assert [document.text for document in documents] == ["second\nline\n", "first\n"]
    reasons = {Path(name).name: reason for name, reason in skipped}
    assert reasons == {"c.bin": "binary", "d.txt": "not UTF-8 text", "e.txt": "empty"}


def test_a_folder_of_nothing_readable_is_refused_with_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "c.bin").write_bytes(b"\x00\x01")
    with pytest.raises(DataError) as refused:
        list(read_documents(tmp_path, max_bytes=1_000))
    assert "c.bin: binary" in str(refused.value) and "--data" in str(refused.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no text was found"):
        list(read_documents(empty, max_bytes=1_000))
    with pytest.raises(DataError, match="there is no"):
        list(read_documents(tmp_path / "nowhere", max_bytes=1_000))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("readable")
    (tmp_path / "b.txt").write_text("locked")
    (tmp_path / "b.txt").chmod(0)
    skipped: list[tuple[str, str]] = []
    assert len(list(read_documents(tmp_path, max_bytes=1_000, skipped=skipped))) == 1
    assert "cannot be read" in skipped[0][1]


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 100_000)
    documents = list(read_documents(tmp_path, max_bytes=100_000))
    assert 100_000 <= sum(len(d.text) for d in documents) < 200_000


def test_the_documentation_found_here_is_real_text_and_always_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERFORMER_CACHE", str(tmp_path))
    first = list(default_documents(max_bytes=200_000))
    assert sum(len(d.text) for d in first) >= 200_000
    assert "the" in first[0].text and first == list(default_documents(max_bytes=200_000))


def test_stories_repeat_for_a_seed_and_differ_between_seeds() -> None:
    assert list(synthetic_documents(3, 5)) == list(synthetic_documents(3, 5))
    assert list(synthetic_documents(3, 5)) != list(synthetic_documents(4, 5))


def test_a_damaged_cache_of_the_documentation_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERFORMER_CACHE", str(tmp_path))
    first = list(default_documents(max_bytes=20_000))
    cache = default_text_cache()
    whole = cache.read_bytes()
    for damaged in (b"", b"\xff\xfe\x00", whole[:-9], whole.replace(b"the", b"teh", 1)):
        cache.write_bytes(damaged)
        assert list(default_documents(max_bytes=20_000)) == first
        assert cache.read_bytes() == whole


def test_a_short_reading_is_cached_and_a_longer_one_goes_on_from_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERFORMER_CACHE", str(tmp_path))
    short = list(default_documents(max_bytes=20_000))
    kept = default_text_cache().stat().st_size
    assert kept > 20_000
    longer = list(default_documents(max_bytes=60_000))
    assert longer[: len(short)] == short and len(longer) > len(short)
    assert default_text_cache().stat().st_size > kept
    assert list(default_documents(max_bytes=20_000)) == short


def test_a_large_file_is_read_no_further_than_needed_whatever_its_characters(
    tmp_path: Path,
) -> None:
    big = tmp_path / "big.txt"
    for first in ("", "a", "ab"):  # so that the reading stops at each byte of a character
        big.write_text(first + "\u6f22" * 200_000)
        documents = list(read_documents(big, max_bytes=10_000))
        assert 10_000 <= sum(len(d.text.encode()) for d in documents) < 300_000
    big.write_bytes(b"text " * 100 + b"\xe6\xbc")
    with pytest.raises(DataError, match="no text"):  # a whole file may not end in half of one
        list(read_documents(big, max_bytes=10_000))


def test_a_file_with_a_zero_byte_anywhere_is_binary(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.dat").write_bytes(b"words " * 5_000 + b"\x00")
    skipped: list[tuple[str, str]] = []
    assert len(list(read_documents(tmp_path, max_bytes=100_000, skipped=skipped))) == 1
    assert skipped == [(str(tmp_path / "b.dat"), "binary")]
