"""Documents -> tokens, and on which of them the loss counts.

A document whose loss counts on a part of it is cut where that part begins and ends, and each piece
is turned into tokens by itself: a prompt so has the tokens that it will have when somebody types
it. Characters that are a special token by the word of a chat template become that token; what is
written in a text never does. The end of the text is learned where the last characters are.

It knows nothing about where documents come from or where tokens go.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from peerformer.data.documents import Document
from peerformer.data.shards import Encoded
from peerformer.data.tokenizer import BATCH_CHARACTERS, Tokenizer
from peerformer.data.word_cache import WordEncoder
from peerformer.errors import DataError

Encoder: TypeAlias = Tokenizer | WordEncoder  # the same tokens, the second at more speed


def encoded(tokenizer: Encoder, documents: Iterable[Document]) -> Iterator[Encoded]:
    """Yield the tokens of documents, a few megabytes of text at a time.

    Raises:
        DataError: a special token of a document is none of the tokenizer's.
    """
    held: list[Document] = []
    size = 0
    for document in documents:
        held.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield from _together(tokenizer, held)
            held, size = [], 0
    yield from _together(tokenizer, held)


def _together(tokenizer: Encoder, documents: list[Document]) -> Iterator[Encoded]:
    cut = [_pieces(document) for document in documents]
    if tokenizer.puts_space_first:
        cut = [_without_spaces(pieces) for pieces in cut]
    texts = [text for pieces in cut for text, _, is_control in pieces if not is_control]
    tokens_of_text = iter(tokenizer.encode_documents(texts))
    for document, pieces in zip(documents, cut, strict=True):
        parts, learned = [], []
        for text, is_learned, is_control in pieces:
            if is_control:
                part = np.asarray([special_id(tokenizer, text, document.source)], np.uint32)
            else:
                part = next(tokens_of_text)
            parts.append(part)
            learned.append(np.full(len(part), is_learned))
        tokens = np.concatenate(parts) if parts else np.empty(0, np.uint32)
        yield Encoded(tokens, len(document.text.encode()), _mask(document, learned))


def _without_spaces(pieces: list[tuple[str, bool, bool]]) -> list[tuple[str, bool, bool]]:
    """Return pieces without the space that the tokenizer puts before each of them itself."""
    first, *others = pieces
    return [
        first,
        *((text.removeprefix(" "), learned, control) for text, learned, control in others),
    ]


def _mask(document: Document, learned: list[NDArray[np.bool_]]) -> NDArray[np.bool_] | None:
    """Return the mask of a document with its end; None where all of it is learned."""
    if document.learned is None:
        return None
    ends_learned = bool(document.learned) and document.learned[-1][1] == len(document.text)
    return np.concatenate([*learned, np.asarray([ends_learned])])


def _pieces(document: Document) -> list[tuple[str, bool, bool]]:
    """Return the text in pieces, each with whether it is learned and whether a special token."""
    text, learned, control = document.text, document.learned, document.control
    if learned is None and not control:
        return [(text, True, False)]
    ranges = [*(learned or ()), *control]
    places = sorted({0, len(text), *(place for both in ranges for place in both)})
    pieces = []
    for start, end in pairwise(places):
        is_learned = learned is None or any(low <= start < high for low, high in learned)
        is_control = any(low <= start < high for low, high in control)
        pieces.append((text[start:end], is_learned, is_control))
    return pieces


def uncontrolled(document: Document) -> Iterator[str]:
    """Yield the pieces of a document that are text, for a tokenizer to learn from."""
    return (text for text, _, is_control in _pieces(document) if not is_control)


def special_id(tokenizer: Encoder, text: str, source: str) -> int:
    """Return the id of a special token.

    Raises:
        DataError: the tokenizer has no such token.
    """
    token = tokenizer.special_tokens.get(text)
    if token is None:
        raise DataError(
            f"the chat template writes {text}, which the tokenizer does not have",
            where=source,
            hint="give the tokenizer that the template belongs to: --data.tokenizer PATH",
        )
    return token
