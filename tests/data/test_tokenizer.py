"""Any text comes back; tokens stand for known bytes; a bad file is refused."""

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tokenizer import (
    BATCH_CHARACTERS,
    PARALLELISM_VARIABLE,
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from peerformer.errors import DataError

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200)


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer((d.text for d in synthetic_documents(1, 50)), 400)


@given(TEXTS)
def test_every_text_comes_back(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text)) == text


@given(TEXTS)
def test_streaming_gives_the_same_text_and_never_half_a_character(text: str) -> None:
    stream = tokenizer().stream()
    pieces = [stream.feed(token) for token in tokenizer().encode(text)]
    assert "".join(pieces) + stream.finish() == text


@given(TEXTS)
def test_the_bytes_of_tokens_add_up_to_the_bytes_of_the_text(text: str) -> None:
    lengths = tokenizer().byte_lengths_V()
    assert sum(int(lengths[token]) for token in tokenizer().encode(text)) == len(text.encode())


def test_a_text_cannot_smuggle_the_end_of_text_in() -> None:
    tokens = tokenizer().encode("before <|endoftext|> after")
    assert tokenizer().end_of_text_id not in tokens


def test_many_documents_are_encoded_as_one_by_one() -> None:
    texts = [d.text for d in synthetic_documents(2, 20)]
    texts[5:5] = ["to and fro " * (BATCH_CHARACTERS // 20), ""] * 3  # more than is encoded at once
    together = tokenizer().encode_documents(texts)
    assert [one.tolist() for one in together] == [tokenizer().encode(text) for text in texts]


def test_a_saved_tokenizer_is_the_same_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    tokenizer().save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path)
    assert again.digest() == tokenizer().digest() and again.encode("Ada") == tokenizer().encode(
        "Ada"
    )
    (tmp_path / "tokenizer.json").write_bytes(tokenizer().to_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path / "nowhere.json")
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unknown"}}')
    with pytest.raises(DataError):
        load_tokenizer(tmp_path)


def rewritten(**changes: object) -> Tokenizer:
    """The tokenizer as another program might have written it."""
    content = json.loads(tokenizer().to_bytes())
    return Tokenizer.from_bytes(json.dumps(content | changes).encode())


def test_a_special_token_has_no_bytes_and_no_text() -> None:
    added = json.loads(tokenizer().to_bytes())["added_tokens"]
    kept = tokenizer().vocab_size
    more = [
        added[0] | {"id": kept + 3, "content": "<|user|>", "special": True},
        added[0] | {"id": kept + 7, "content": "caf\u00e9", "special": False},
    ]
    other = rewritten(added_tokens=added + more)
    special, plain = (other._inner.token_to_id(name) for name in ("<|user|>", "caf\u00e9"))
    assert other.byte_lengths_V()[special] == 0 and other.stream().feed(special) == ""
    assert other.byte_lengths_V()[plain] == 5 and other.stream().feed(plain) == "caf\u00e9"


def test_ids_may_have_gaps_and_the_vocabulary_reaches_over_them() -> None:
    model = json.loads(tokenizer().to_bytes())["model"]
    last = max(model["vocab"], key=model["vocab"].get)
    model["vocab"][last] += 5
    other = rewritten(model=model)
    assert other.vocab_size == len(other.byte_lengths_V()) == tokenizer().vocab_size + 5
    assert other.byte_lengths_V()[-6:].tolist() == [0, 0, 0, 0, 0, len(last)]


def test_a_tokenizer_that_asks_to_cut_or_pad_texts_does_neither() -> None:
    cut = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    pad = {
        "strategy": {"Fixed": 999},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    text = "Ada walked to the harbour and back again"
    other = rewritten(truncation=cut, padding=pad)
    assert other.encode(text) == tokenizer().encode(text)
    assert other.encode_documents([text])[0].tolist() == tokenizer().encode(text)


def test_a_tokenizer_without_an_end_of_text_is_refused() -> None:
    with pytest.raises(DataError, match="has no <|endoftext|> token".replace("|", r"\|")):
        content = json.loads(tokenizer().to_bytes())
        del content["model"]["vocab"]["<|endoftext|>"]
        Tokenizer.from_bytes(json.dumps(content | {"added_tokens": []}).encode())


def test_a_run_gives_the_tokenizer_that_it_prepared(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    tokenizer().save(tmp_path / "data" / "tokenizer.json")
    assert load_tokenizer(tmp_path).digest() == tokenizer().digest()


FORKED = """
import os, sys
from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tokenizer import train_tokenizer
texts = [document.text for document in synthetic_documents(1, 100)]
before = train_tokenizer(texts, 300)
before.encode_documents(texts)
child = os.fork()
if child == 0:
    before.encode_documents(texts)
    train_tokenizer(texts, 300)
    os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("parallelism", [None, "true", "false"])
def test_a_forked_process_tokenises_without_a_deadlock_or_a_warning(
    parallelism: str | None,
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != PARALLELISM_VARIABLE}
    if parallelism is not None:
        environment[PARALLELISM_VARIABLE] = parallelism
    with subprocess.Popen(
        [sys.executable, "-c", FORKED],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            _, said = process.communicate(timeout=40)
        finally:
            if process.poll() is None:  # a deadlock: the child must not outlive the test
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 7 and not said, said
