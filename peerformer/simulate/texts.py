"""Text for real worlds that every machine has: Python's own, as bytes with the ends marked.

Three kinds, which a byte model tells apart at once: the prose of the language reference that ships
with Python (`pydoc_data.topics`, some 465 kB), source of its standard library, and stories of our
own making. Documents are held out by the hash of their text. Another Python has another text;
`digest` says which.
"""

import importlib.util
from collections.abc import Iterable
from functools import cache
from importlib.abc import InspectLoader

import numpy as np
from blake3 import blake3

from peerformer.data.cleaning import clean, cut
from peerformer.data.shards import ShardSet
from peerformer.data.synthetic import synthetic_documents
from peerformer.errors import DataError
from peerformer.protocol.identity import hash_of
from peerformer.simulate.learning import END_OF_TEXT, VOCAB_SIZE

PROSE, SOURCE, STORIES = "prose", "source", "stories"
KINDS = (PROSE, SOURCE, STORIES)
DOCUMENT_CHARACTERS_MAX = 4_096  # short enough that a tenth of the documents is about a tenth
HELD_OUT_OF_256 = 26
STORIES_SEED, STORIES_COUNT = 1, 1_000  # some 400 bytes each
MODULES = (
    "argparse",
    "ast",
    "calendar",
    "configparser",
    "csv",
    "dataclasses",
    "difflib",
    "fractions",
    "inspect",
    "optparse",
    "pickle",
    "statistics",
    "tarfile",
    "textwrap",
)


def _prose() -> list[str]:
    try:
        from pydoc_data import topics
    except ImportError as error:
        raise DataError(
            "this Python came without its language reference",
            why="the module pydoc_data.topics is not there",
            hint="a Python from python.org, conda or uv has it",
        ) from error
    return [topics.topics[name] for name in sorted(topics.topics)]


def _source() -> list[str]:
    texts = []
    for name in MODULES:
        spec = importlib.util.find_spec(name)
        loader = spec.loader if spec is not None else None
        text = loader.get_source(name) if isinstance(loader, InspectLoader) else None
        if text is not None:
            texts.append(text)
    if not texts:
        raise DataError(
            "this Python came without the source of its standard library",
            hint="a Python from python.org, conda or uv has it",
        )
    return texts


@cache
def documents(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what is trained on and what is held out, each in an order that is always the same.

    Raises:
        DataError: this Python came without it.
    """
    assert kind in KINDS, kind
    if kind == STORIES:
        texts = [document.text for document in synthetic_documents(STORIES_SEED, STORIES_COUNT)]
    else:
        texts = _prose() if kind == PROSE else _source()
    pieces = dict.fromkeys(
        piece for text in texts for piece in cut(clean(text), DOCUMENT_CHARACTERS_MAX)
    )
    held_out = {piece for piece in pieces if _first_byte(piece) < HELD_OUT_OF_256}
    return tuple(p for p in pieces if p not in held_out), tuple(p for p in pieces if p in held_out)


def _first_byte(text: str) -> int:
    return blake3(text.encode()).digest()[0]


def own_part(kind: str, seed: int, whose: bytes) -> tuple[str, ...]:
    """Return the half of a kind's training documents that a peer has."""
    train, _ = documents(kind)
    key = hash_of("own text", str(seed).encode(), whose)
    return tuple(text for text in train if blake3(text.encode(), key=key).digest()[0] % 2)


def shards(texts: Iterable[str]) -> ShardSet:
    """Return documents as bytes, each with its end marked."""
    tokens: list[int] = []
    size = 0
    for text in texts:
        data = text.encode()
        tokens += [*data, END_OF_TEXT]
        size += len(data)
    array = np.array(tokens, dtype=np.uint16)
    return ShardSet((array,), VOCAB_SIZE, size, blake3(array.tobytes()).hexdigest())


@cache
def digest() -> str:
    """Return what names the texts of this Python."""
    hasher = blake3()
    for kind in KINDS:
        for part in documents(kind):
            hasher.update("\x00".join(part).encode())
    return hasher.hexdigest()[:16]
