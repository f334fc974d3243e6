"""Text in, documents out: cleaned, cut, and what cannot be read is named."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerformer.config import DataConfig
from peerformer.data import cleaning
from peerformer.data.cleaning import clean, clean_stream, cut, cut_stream
from peerformer.data.default_text import default_documents, default_text_cache
from peerformer.data.documents import Document
from peerformer.data.origins import documents_of
from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tally import Tally
from peerformer.errors import DataError


def read(path: Path, *, max_bytes: int, tally: Tally | None = None) -> list[Document]:
    config = DataConfig(path=str(path), max_bytes=max_bytes)
    return list(documents_of(config, Tally() if tally is None else tally))


def named(tally: Tally) -> dict[str, str]:
    """The first file of each reason."""
    return {reason: Path(entry.examples[0]).name for reason, entry in tally.reasons}


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@given(st.text(alphabet="ab \n", max_size=400), st.integers(8, 64))
def test_cutting_loses_nothing_but_blank_ends(text: str, size: int) -> None:
    pieces = list(cut(text, size))
    assert all(len(piece) <= size for piece in pieces)
    assert text.startswith("".join(pieces)) and not text[len("".join(pieces)) :].strip()


@given(
    st.lists(st.text(alphabet="a\u0301e\u3000 \t\r\n\x01", max_size=12), max_size=12),
    st.integers(4, 40),
)
def test_a_stream_is_cleaned_and_cut_as_the_whole_text_is(blocks: list[str], size: int) -> None:
    whole = clean("".join(blocks))
    assert "".join(clean_stream(blocks)) == whole
    assert list(cut_stream(clean_stream(blocks), size)) == list(cut(whole, size))


def test_a_line_without_an_end_is_cleaned_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "LINE_CHARACTERS_MAX", 50)
    text = "e\u0301 word " * 2_000  # accents that compose, and no line end anywhere
    blocks = [text[start : start + 7] for start in range(0, len(text), 7)]
    assert "".join(clean_stream(blocks)) == clean(text)


def test_a_folder_is_read_in_order_and_what_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second\r\nline\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.md").write_text("first")
    (tmp_path / "c.bin").write_bytes(b"\x00\x01binary")
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\xfa broken")
    (tmp_path / "e.txt").write_text("")
    (tmp_path / ".hidden").write_text("secret")
    tally = Tally()
    found = read(tmp_path, max_bytes=10_000, tally=tally)
    assert [document.text for document in found] == ["second\nline\n", "first\n"]
    assert named(tally) == {"binary": "c.bin", "not UTF-8 text": "d.txt", "empty": "e.txt"}
    assert tally.files == {"text": 1, "md": 1} and tally.bytes == {"text": 12, "md": 6}


def test_a_folder_of_nothing_readable_is_refused_with_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "c.bin").write_bytes(b"\x00\x01")
    with pytest.raises(DataError) as refused:
        read(tmp_path, max_bytes=1_000)
    assert "c.bin: binary" in str(refused.value) and "--data" in str(refused.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no text was found"):
        read(empty, max_bytes=1_000)
    with pytest.raises(DataError, match="there is no"):
        read(tmp_path / "nowhere", max_bytes=1_000)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("readable")
    (tmp_path / "b.txt").write_text("locked")
    (tmp_path / "b.txt").chmod(0)
    tally = Tally()
    assert len(read(tmp_path, max_bytes=1_000, tally=tally)) == 1
    assert [reason for reason, _ in tally.reasons] == ["cannot be read: Permission denied"]


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 100_000)
    found = read(tmp_path, max_bytes=100_000)
    assert 100_000 <= sum(len(d.text) for d in found) < 200_000


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
        found = read(big, max_bytes=10_000)
        assert 10_000 <= sum(len(d.text.encode()) for d in found) < 300_000
    big.write_bytes(b"text " * 100 + b"\xe6\xbc")
    with pytest.raises(DataError, match="no text"):  # a whole file may not end in half of one
        read(big, max_bytes=10_000)


def test_a_file_with_a_zero_byte_anywhere_is_binary(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.dat").write_bytes(b"words " * 5_000 + b"\x00")
    tally = Tally()
    assert len(read(tmp_path, max_bytes=100_000, tally=tally)) == 1
    assert named(tally) == {"binary": "b.dat"}
