"""Records of every format are the same records, and what is broken is named by its place."""

import csv
import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard

from peerformer.data import opened
from peerformer.data.opened import RECORD_BYTES_MAX, UnreadableError
from peerformer.data.readers import TEXT, Record, format_of, records

ROWS = [
    {"title": f"Café {number}", "text": f'Line one, "quoted"\nline two of {number}\n'}
    for number in range(600)
]


def write_csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, ["title", "text"], delimiter=delimiter)
        table.writeheader()
        table.writerows(ROWS)


def write_arrow(path: Path, *, is_stream: bool = False) -> None:
    table = pa.Table.from_pylist(ROWS)
    make = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


def json_lines() -> str:
    return "".join(json.dumps(row) + "\n" for row in ROWS)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_text("\ufeff" + json_lines() + "\n\n"),
    "a.ndjson": lambda path: path.write_text(json_lines()[:-1]),
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "b.json": lambda path: path.write_text(json_lines()),
    "a.csv": write_csv,
    "b.csv": lambda path: write_csv(path, ";"),
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.parquet": lambda path: pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path),
    "a.arrow": write_arrow,
    "b.arrow": lambda path: write_arrow(path, is_stream=True),
    "a.feather": lambda path: pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), str(path)),
}


def packed(path: Path, packing: str) -> Path:
    data = path.read_bytes()
    if packing == ".gz":
        data = gzip.compress(data[:500]) + gzip.compress(data[500:])  # two members
    elif packing == ".zst":
        data = b"".join(zstandard.compress(part) for part in (data[:500], data[500:]))
    made = path.with_name(path.name + packing)
    made.write_bytes(data)
    return made


def read(path: Path) -> tuple[list[Record], list[tuple[str, str]]]:
    noted: list[tuple[str, str]] = []
    found = list(records(path, note=lambda *what: noted.append(what)))
    return found, [(place.removeprefix(str(path)), reason) for place, reason in noted]


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_records_that_were_written(
    name: str, packing: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    path = packed(path, packing)
    assert format_of(path) != TEXT
    assert read(path) == (ROWS, [])


def test_names_tell_formats() -> None:
    known = {"x.JSONL.GZ": "jsonl", "x.tsv": "tsv", "x.feather.zst": "arrow", "x.gz": TEXT}
    assert {name: format_of(Path(name)) for name in known} == known
    assert {format_of(Path(name)) for name in ("a.md", "a.txt.gz", "a", "a.py")} == {TEXT}


def test_broken_lines_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    deep = b"[" * 200_000
    lines = [b'{"text": "a"}', b'{"text": ', b"7", b'"alone"', b'{"text": "\xff"}', deep]
    path.write_bytes(b"\n".join([*lines, b'{"text": "z"}']))
    found, noted = read(path)
    assert found == [{"text": "a"}, "alone", {"text": "z"}]
    assert noted == [
        (":2", "a line that is no JSON"),
        (":3", "JSON that is neither an object nor a string"),
        (":5", "a line that is not UTF-8"),
        (":6", "a line that is no JSON"),
    ]


def test_a_row_of_another_length_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'title,text\n1,"one\nmore"\n2\n\n3,three\n4,f\xfcr\n5,five\n')
    found, noted = read(path)
    assert [row["text"] for row in found if isinstance(row, dict)] == ["one\nmore", "three", "five"]
    assert [place for place, _ in noted] == [":4", ":7"]


def test_a_field_without_an_end_is_bounded_and_huge_fields_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + '"' + "long " * 1_000_000 + '"\nshort\n')
    assert [len(row["text"]) for row in read(path)[0] if isinstance(row, dict)] == [5_000_000, 5]
    path.write_text('text\ngood\n"' + "never ends\n" * (RECORD_BYTES_MAX // 10))
    rows = records(path)
    assert next(rows) == {"text": "good"}
    with pytest.raises(UnreadableError, match="no table after line"):
        next(rows)


# Nothing in a table that is not packed tells that it should go on.
@pytest.mark.parametrize(
    ("name", "packing"),
    [
        (name, packing)
        for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "b.arrow")
        for packing in ("", ".gz", ".zst")
        if (name, packing) != ("a.csv", "")
    ],
)
def test_a_file_that_was_cut_short_gives_whole_records_and_says_so(
    name: str, packing: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    path = packed(path, packing)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    found: list[Record] = []
    noted: list[str] = []
    try:
        for record in records(path, note=lambda place, reason: noted.append(reason)):
            found.append(record)
    except UnreadableError as error:
        noted.append(str(error))
    assert noted and found == ROWS[: len(found)]


def test_what_claims_to_be_a_format_and_is_not_is_refused(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.arrow", "a.feather", "a.json", "a.jsonl.gz", "a.csv.zst"):
        path = tmp_path / name
        path.write_text("This is no such thing at all.\n" * 10)
        with pytest.raises(UnreadableError, match="damaged|no JSON"):
            list(records(path))
        path.write_bytes(b"")
        if name.endswith(("parquet", "arrow", "feather")):
            with pytest.raises(UnreadableError, match="damaged"):
                list(records(path))


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_bomb_of_a_single_line_takes_no_memory(packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb.jsonl{packing}"
    if packing == ".gz":
        with gzip.open(path, "wb", 1) as file:
            for _ in range(200):
                file.write(b"x" * 1_000_000)
    else:
        with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as packer:
            for _ in range(200):
                packer.write(b"x" * 1_000_000)
    assert path.stat().st_size < 2_000_000
    tracemalloc.start()
    assert read(path) == ([], [(":1", "a line of more than 32 MiB")])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * RECORD_BYTES_MAX


def test_lines_and_values_are_the_same_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jsonl", "a.json", "a.csv"):
        path = tmp_path / name
        WRITERS[name](path)
        for size in (1, 7, 1_000):
            monkeypatch.setattr(opened, "BLOCK_BYTES", size)
            assert read(path) == (ROWS, [])
