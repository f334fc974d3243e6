"""Prepared once, reopened after; both sides of the split hold something."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerformer.config import DataConfig
from peerformer.data.documents import Document
from peerformer.data.holding_out import HELD_OUT_CHARACTERS_MIN, border_of
from peerformer.data.prepare import prepare
from peerformer.data.spool import facts_of
from peerformer.data.tokenizer import train_tokenizer
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


def held_out(documents: list[Document], share: float, parts: int = 3) -> set[str]:
    """The texts that are held out of documents that lie in some parts."""
    facts = facts_of(documents)
    cuts = [len(documents) * part // parts for part in range(parts + 1)]

    def ranked():
        for start, end in pairwise(cuts):
            yield np.arange(start, end), facts[start:end]

    border = border_of(ranked, share)
    chosen = border.holds_out(np.arange(len(documents)), facts)
    return {documents[row].text for row in np.flatnonzero(chosen)}


def test_the_split_depends_on_the_text_alone_and_leaves_no_side_empty() -> None:
    documents = [Document(str(index), f"text {index}") for index in range(200)]
    chosen = held_out(documents, 0.1)
    assert 5 <= len(chosen) <= 40
    renamed = [Document("elsewhere", document.text) for document in reversed(documents)]
    assert held_out(renamed, 0.1, parts=7) == chosen
    for index in range(0, 40, 2):  # some pairs have both hashes in the lower half
        assert len(held_out(documents[index : index + 2], 0.5)) == 1


@given(
    st.lists(st.integers(1, 3_000), min_size=2, max_size=60), st.floats(0, 0.5), st.integers(1, 5)
)
def test_what_is_held_out_part_by_part_is_what_a_ranking_of_all_holds_out(
    sizes: list[int], share: float, parts: int
) -> None:
    texts = dict.fromkeys(f"{index} " + "x" * size for index, size in enumerate(sizes))
    documents = [Document("", text) for text in texts]
    ranked = sorted(documents, key=lambda document: int(facts_of([document])["rank"][0]))
    count = sum(int(facts_of([one])["rank"][0]) < share * 2**64 for one in ranked)
    wanted = min(HELD_OUT_CHARACTERS_MIN, sum(map(len, texts)) // 10)
    while count < 1 or sum(len(one.text) for one in ranked[:count]) < wanted:
        count += 1
    expected = {one.text for one in ranked[: min(count, len(ranked) - 1)]}
    assert held_out(documents, share, parts) == expected


def test_a_single_document_is_cut_so_that_both_sides_hold_some(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a single text of a few words\n\n" * 40)
    made = prepare(DataConfig(path=str(tmp_path / "one.txt"), vocab_size=300), tmp_path / "run")
    assert made.train.num_bytes and made.validation.num_bytes
    assert made.train.num_bytes + made.validation.num_bytes == 40 * 30 - 1


def test_synthetic_text_needs_no_files(tmp_path: Path) -> None:
    made = prepare(DataConfig(path="synthetic:5", vocab_size=300), tmp_path)
    assert made.description.startswith("synthetic") and made.train.num_tokens > 10_000


def test_a_tokenizer_put_beside_the_shards_of_another_is_refused(tmp_path: Path) -> None:
    config = DataConfig(path=str(corpus(tmp_path / "text")), vocab_size=300)
    prepare(config, tmp_path / "run")
    train_tokenizer(["quite another text"], 280).save(tmp_path / "run" / "tokenizer.json")
    with pytest.raises(DataError, match="another tokenizer") as refused:
        prepare(config, tmp_path / "run")
    assert "tokenizer.json" in str(refused.value)


def test_a_tokenizer_that_is_given_is_taken_as_it_is(tmp_path: Path) -> None:
    given = train_tokenizer(["some text, some more text"], 270)
    given.save(tmp_path / "tokenizer.json")
    text = str(corpus(tmp_path / "text"))
    made = prepare(DataConfig(path=text, tokenizer=str(tmp_path)), tmp_path / "run")
    assert made.tokenizer.digest() == made.train.tokenizer_digest == given.digest()


def test_what_is_not_read_does_not_make_the_text_new(tmp_path: Path) -> None:
    text = corpus(tmp_path / "text")
    config, said = DataConfig(path=str(text), vocab_size=300), []
    prepare(config, tmp_path / "run", report=said.append)
    (text / ".git").mkdir()
    (text / ".git" / "index").write_text("changes all the time")
    (text / "link.txt").symlink_to(text / "nowhere")
    count = len(said)
    prepare(config, tmp_path / "run", report=said.append)
    assert len(said) == count


def test_little_text_still_holds_out_a_tenth() -> None:
    documents = [Document(str(index), f"{index} words " * 10) for index in range(40)]
    chosen = held_out(documents, 0.0)
    assert sum(map(len, chosen)) >= sum(len(d.text) for d in documents) // 10
    assert len(chosen) < 10


def test_an_interrupted_preparation_is_done_again(tmp_path: Path) -> None:
    config = DataConfig(path=str(corpus(tmp_path / "text")), vocab_size=300)
    first = prepare(config, tmp_path / "run").train.digest
    (tmp_path / "run" / "prepared.json").unlink()  # it is written last
    (tmp_path / "run" / "train" / "shard-00000.bin").write_bytes(b"half")
    assert prepare(config, tmp_path / "run").train.digest == first


@pytest.mark.parametrize("seed", ["x", "-1", "\u00b2", "9" * 30])
def test_a_seed_that_is_no_number_is_refused(seed: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable seed"):
        prepare(DataConfig(path=f"synthetic:{seed}", vocab_size=300), tmp_path)


def test_synthetic_text_keeps_to_the_limit(tmp_path: Path) -> None:
    made = prepare(DataConfig(path="synthetic:5", vocab_size=300, max_bytes=20_000), tmp_path)
    assert 20_000 <= made.train.num_bytes + made.validation.num_bytes < 22_000
