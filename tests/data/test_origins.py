"""Everything that --data understands: mixed folders, data sets, made text; and what is refused."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from peerformer.config import DataConfig
from peerformer.data.markov import LETTERS, MarkovSource, markov_documents
from peerformer.data.origins import documents_of, floor_of
from peerformer.data.tally import Tally
from peerformer.errors import DataError

ROWS = [{"title": f"t{number}", "text": f"The text of row {number}.\n"} for number in range(30)]


def texts_of(path: str, **settings: object) -> list[str]:
    return [document.text for document in documents_of(DataConfig(path=path, **settings), Tally())]


def mixed_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.txt").write_text("Plain text.\n")
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]) + "{oops\n")
    with gzip.open(folder / "c.csv.gz", "wt") as file:
        file.write('title,text\nx,"From a table."\n')
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS[3:5]), folder / "d.parquet")
    (folder / "e.bin").write_bytes(b"\x00")
    return folder


def test_a_folder_of_many_formats_is_one_text(tmp_path: Path) -> None:
    folder, tally = mixed_folder(tmp_path / "text"), Tally()
    found = list(documents_of(DataConfig(path=str(folder)), tally))
    expected = ["Plain text.\n", *(row["text"] for row in ROWS[:3]), "From a table.\n"]
    assert [one.text for one in found] == [*expected, *(row["text"] for row in ROWS[3:5])]
    assert tally.files == {"text": 1, "jsonl": 1, "csv": 1, "parquet": 1}
    assert {reason: entry.examples for reason, entry in tally.reasons} == {
        "a line that is no JSON": [f"{folder / 'b.jsonl'}:4"],
        "binary": [str(folder / "e.bin")],
    }


def test_a_second_format_changes_nothing_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(3):
        (tmp_path / "text" / f"{number}.txt").write_text(f"Text {number}.\n")
    before = texts_of(str(tmp_path / "text"))
    (tmp_path / "text" / "z.jsonl").write_text(json.dumps(ROWS[0]))
    assert texts_of(str(tmp_path / "text")) == [*before, ROWS[0]["text"]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_wrong_column_is_refused_with_the_columns_that_there_are(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.endswith("csv"):
        path.write_text("title,text\n1,One.\n")
    else:
        path.write_text(json.dumps(ROWS[0]))
    with pytest.raises(DataError, match="no column 'body'") as refused:
        texts_of(str(path), column="body")
    assert "choose one of: title, text  (--data.column title)" in str(refused.value)
    assert texts_of(str(path), column="title")[0].startswith(("1", "t0"))


def test_texts_that_are_none_are_counted_by_reason(tmp_path: Path) -> None:
    rows = ['{"text": null}', '{"text": 7}', '{"text": "  "}', '{"text": "\\ud800"}']
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, '{"body": 1}', '{"text": "good"}']))
    tally = Tally()
    found = list(documents_of(DataConfig(path=str(tmp_path)), tally))
    assert [one.text for one in found] == ["good\n"]
    assert {reason: entry.count for reason, entry in tally.reasons} == {
        "an empty text": 2,
        "column 'text' is no text": 1,
        "half a character (a lone surrogate)": 1,
        "no column 'text', but body": 1,
    }


def test_a_folder_of_nothing_but_damage_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x00")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"some text " * 1_000)[:-20])
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "d.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(DataError, match="no text was found") as refused:
        texts_of(str(tmp_path))
    assert "damaged or" in str(refused.value) and len(str(refused.value)) < 600


def test_a_packed_text_without_an_end_stops_at_the_limit(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "bomb.txt.gz", "wb", 1) as file:
        for _ in range(100):
            file.write(b"again and again\n" * 65_536)
    assert 10_000 <= sum(map(len, texts_of(str(tmp_path), max_bytes=10_000))) < 100_000


# --- data sets of Hugging Face -------------------------------------------------------------------


def test_a_saved_data_set_is_read_with_its_selection(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS).select([4, 2, 9])  # kept as indices, not as rows
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(str(tmp_path / "two"))
    expected = [ROWS[number]["text"] for number in (4, 2, 9)]
    assert texts_of(str(tmp_path / "one")) == expected == texts_of(str(tmp_path / "two"))
    assert texts_of(str(tmp_path / "two"), dataset_split="test") == expected[:1]
    assert texts_of(f"hf:{tmp_path / 'two'}", column="title") == ["t4\n", "t2\n", "t9\n"]
    with pytest.raises(DataError, match="no split 'dev'") as refused:
        texts_of(str(tmp_path / "two"), dataset_split="dev")
    assert "train, test" in str(refused.value)


def test_a_folder_in_the_layout_of_the_hub_streams_its_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, rows in (("train", ROWS[:4]), ("test", ROWS[4:6])):
        table = pa.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert texts_of(f"hf:{tmp_path}") == [row["text"] for row in ROWS[:4]]
    assert texts_of(f"hf:{tmp_path}", dataset_split="test") == [row["text"] for row in ROWS[4:6]]
    with pytest.raises(DataError, match="cannot be read"):
        texts_of(f"hf:{tmp_path}", dataset_split="nothing")


def test_a_hub_out_of_reach_is_one_clear_error() -> None:
    code = (
        "from peerformer.interface.cli import main; import sys;"
        "sys.exit(main(['data', 'look', 'hf:nobody/nothing']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the data set nobody/nothing cannot be read" in done.stderr


# --- letters with a known entropy ----------------------------------------------------------------


def test_the_entropy_of_the_letters_is_that_of_the_transitions() -> None:
    source = MarkovSource.from_seed(1)
    assert source.transitions_LL.sum(axis=1) == pytest.approx(1)
    assert source.stationary_L @ source.transitions_LL == pytest.approx(source.stationary_L)
    fair = MarkovSource(source.transitions_LL * 0 + 1 / 16, source.stationary_L * 0 + 1 / 16)
    assert fair.entropy_bits_per_letter() == pytest.approx(4)
    # What is drawn has the transitions that were promised.
    text = "".join(document.text[:-1] for document in markov_documents(1, 100))
    before = text.count("a")
    for letter, share in zip(LETTERS, source.transitions_LL[0], strict=True):
        found = sum(text[place + 1 : place + 2] == letter for place in _places(text, "a"))
        assert abs(found / before - share) < 5 * (share / before) ** 0.5 + 1e-3


def _places(text: str, letter: str) -> list[int]:
    return [place for place, one in enumerate(text) if one == letter]


def test_letters_repeat_for_a_seed_and_the_floor_is_told(tmp_path: Path) -> None:
    assert list(markov_documents(3, 5)) == list(markov_documents(3, 105))[:5]
    assert list(markov_documents(3, 1)) != list(markov_documents(4, 1))
    assert floor_of("markov:1") == MarkovSource.from_seed(1).floor_bits_per_byte()
    assert floor_of("synthetic:1") is None and floor_of(None) is None
    with pytest.raises(DataError, match="no usable seed"):
        texts_of("markov:x")
