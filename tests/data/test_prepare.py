"""Prepared once, reopened after; both sides of the split hold something."""

from pathlib import Path

import pytest

from peerformer.config import DataConfig
from peerformer.data.documents import Document
from peerformer.data.prepare import prepare, split
from peerformer.errors import DataError


def corpus(folder: Path, files: int = 30) -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(files):
        (folder / f"{index}.txt").write_text(f"The story of number {index}. " * 20)
    return folder


def test_preparing_twice_reads_the_text_once(tmp_path: Path) -> None:
    config = DataConfig(path=str(corpus(tmp_path / "text")), vocab_size=300)
    said: list[str] = []
    first = prepare(config, tmp_path / "run", report=said.append)
    again = prepare(config, tmp_path / "run", report=said.append)
    assert len(said) == 1 and "30 documents" in said[0]
    assert first.train.digest == again.train.digest and first.train.num_tokens > 100
    assert first.tokenizer.digest() == again.tokenizer.digest()


def test_changed_text_is_prepared_anew(tmp_path: Path) -> None:
    config = DataConfig(path=str(corpus(tmp_path / "text")), vocab_size=300)
    first = prepare(config, tmp_path / "run")
    (tmp_path / "text" / "new.txt").write_text("Something else entirely. " * 50)
    assert prepare(config, tmp_path / "run").train.digest != first.train.digest


def test_damage_to_what_was_prepared_is_named(tmp_path: Path) -> None:
    config = DataConfig(path=str(corpus(tmp_path / "text")), vocab_size=300)
    prepare(config, tmp_path / "run")
    shard = tmp_path / "run" / "train" / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError) as refused:
        prepare(config, tmp_path / "run")
    assert shard.name in str(refused.value)


def test_the_split_depends_on_the_text_alone_and_leaves_no_side_empty() -> None:
    documents = [Document(str(index), f"text {index}") for index in range(200)]
    train, held_out = split(documents, 0.1)
    assert 5 <= len(held_out) <= 40 and len(train) + len(held_out) == 200
    renamed = [Document("elsewhere", document.text) for document in reversed(documents)]
    assert {d.text for d in split(renamed, 0.1)[1]} == {d.text for d in held_out}
    for few in (documents[:2], [Document("one", "a single text\n\n" * 40)]):
        one, other = split(few, 0.01)
        assert one and other


def test_synthetic_text_needs_no_files(tmp_path: Path) -> None:
    made = prepare(DataConfig(path="synthetic:5", vocab_size=300), tmp_path)
    assert made.description.startswith("synthetic") and made.train.num_tokens > 10_000
    with pytest.raises(DataError):
        prepare(DataConfig(path="synthetic:x", vocab_size=300), tmp_path)
