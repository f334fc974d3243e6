"""Held-out text by source: whose it is survives preparing, and each source is judged alone."""

from pathlib import Path

import numpy as np
import pytest

from peerformer.config import DataConfig
from peerformer.data.documents import Document
from peerformer.data.prepare import prepare
from peerformer.data.shards import ShardSet
from peerformer.data.sources import SOURCES_MAX, Source, groups_of, line_of, parts_of, source_of
from peerformer.errors import DataError

LETTERS = "Dear madam, the goods arrived on Tuesday and were found to be in good order.\n\n"
MINUTES = "The chair opened the meeting at nine; nobody was absent, and nothing was decided.\n\n"


def text(root: Path) -> Path:
    for folder, line in (("letters", LETTERS), ("minutes 2024", MINUTES)):
        (root / folder).mkdir(parents=True)
        for number in range(40):
            (root / folder / f"{number}.txt").write_text(f"{number}. " + line * 20)
    return root


def shards(tokens: int) -> ShardSet:
    return ShardSet((np.arange(tokens, dtype=np.uint16),), 60_000, 0, "")


def test_folders_of_the_text_become_the_sources_of_what_is_held_out(tmp_path: Path) -> None:
    config = DataConfig(path=str(text(tmp_path / "text")), vocab_size=300, validation_fraction=0.3)
    made = prepare(config, tmp_path / "prepared")
    parts = dict(parts_of(made.validation, made.sources))
    assert list(parts) == ["letters", "minutes_2024"]
    assert sum(part.num_tokens for part in parts.values()) == made.validation.num_tokens
    for name, word in (("letters", "madam"), ("minutes_2024", "chair")):
        tokens = parts[name].window(0, parts[name].num_tokens)
        said = made.tokenizer.decode(tokens.tolist())
        others = {"letters": "chair", "minutes_2024": "madam"}[name]
        assert said.count(word) > 20 and others not in said
    again = prepare(config, tmp_path / "prepared")
    assert again.sources == made.sources  # reopened


def test_text_to_hold_out_may_be_given_by_itself(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "all.txt").write_text(LETTERS * 400)
    config = DataConfig(path=str(mine), held_out=str(text(tmp_path / "samples")), vocab_size=300)
    made = prepare(config, tmp_path / "prepared")
    assert [name for name, _ in parts_of(made.validation, made.sources)] == [
        "letters",
        "minutes_2024",
    ]
    told = made.tokenizer.decode(made.train.window(0, made.train.num_tokens).tolist())
    assert told.count("madam") == 400 and "chair" not in told  # nothing of mine was held out
    # Another text to hold out is prepared anew.
    (tmp_path / "samples" / "letters" / "0.txt").write_text("Nothing.\n" * 400)
    assert prepare(config, tmp_path / "prepared").validation.digest != made.validation.digest
    missing = DataConfig(path=str(mine), held_out=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        prepare(missing, tmp_path / "other")


def test_text_of_one_source_or_of_too_many_is_looked_at_as_one(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    names = [
        source_of(Document(str(tmp_path / name), "x"), str(tmp_path))
        for name in ("b/x.txt", "a/y.txt", "b/z.txt", "c d.txt")
    ]
    assert names == ["b", "a", "b", "c_d"] and groups_of(names) == ["a", "b", "c_d"]
    assert groups_of(["a", "a"]) is None and groups_of([]) is None
    assert groups_of(f"{number}" for number in range(SOURCES_MAX + 1)) is None
    assert source_of(Document("elsewhere/x.txt", "x"), str(tmp_path)) == ""
    assert source_of(Document("python: x", "x"), None) == ""
    assert line_of([Source("", 5)]) == "" and line_of([Source("a", 5), Source("b", 2)]) == "a:5,b:2"


@pytest.mark.parametrize("line", ["a", "a:", ":5", "a:x", "a:-1", "a:5,b:4", "a:11"])
def test_a_line_that_is_not_of_these_tokens_is_refused(line: str) -> None:
    with pytest.raises(DataError):
        parts_of(shards(10), line)
    assert parts_of(shards(10), "") == []
    assert [part.num_tokens for _, part in parts_of(shards(10), "a:4,b:6")] == [4, 6]
