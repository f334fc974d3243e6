"""Held-out text by where it comes from, so that a model can be judged on each source by itself.

A mean over all text hides what a minority of it loses. The sources are the folders (or files) that
stand at the top of the folder of text; held-out documents are put in their order, and a short line
of text, `letters:5120,minutes:880`, says how many tokens are of each.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peerformer.data.documents import Document
from peerformer.data.shards import ShardSet
from peerformer.errors import DataError

SOURCES_MAX = 16  # more are looked at as one
NAME_CHARACTERS_MAX = 32


@dataclass(frozen=True, slots=True)
class Source:
    """Some tokens that follow each other."""

    name: str
    tokens: int


def source_of(document: Document, path: str | None) -> str:
    """Return the name of a document's source in the text at a path; "" where it has none."""
    if path is None or not Path(path).is_dir():
        return ""
    try:
        first = Path(document.source).relative_to(path).parts[0]
    except (ValueError, IndexError):
        return ""
    return re.sub(r"[^\w.-]", "_", Path(first).stem)[:NAME_CHARACTERS_MAX]


def groups_of(names: Iterable[str]) -> list[str] | None:
    """Return the names of sources in order; None where there is one, or too many."""
    found: set[str] = set()
    for name in names:
        found.add(name)
        if len(found) > SOURCES_MAX:
            return None
    return sorted(found) if len(found) > 1 else None


def line_of(sources: Iterable[Source]) -> str:
    """Return sources as a line of text; nothing for a single one without a name."""
    return ",".join(f"{source.name}:{source.tokens}" for source in sources if source.name)


def parts_of(shards: ShardSet, line: str) -> list[tuple[str, ShardSet]]:
    """Return the tokens of each source; nothing for an empty line.

    Raises:
        DataError: the line is none, or is of other tokens.
    """
    sources = []
    for word in filter(None, line.split(",")):
        name, _, tokens = word.rpartition(":")
        if not name or not tokens.isdecimal():
            raise DataError(f"{line[:80]!r} does not say which held-out text is whose")
        sources.append(Source(name, int(tokens)))
    if sources and sum(source.tokens for source in sources) != shards.num_tokens:
        raise DataError("the held-out text is another than its sources say")
    parts, start = [], 0
    tokens_all = np.concatenate(shards.parts) if sources else np.empty(0, np.uint16)
    for source in sources:
        piece = tokens_all[start : start + source.tokens]
        learned = shards.learned(start, source.tokens)
        masks = (np.packbits(learned),) if shards.is_masked else ()
        start += source.tokens
        parts.append((source.name, ShardSet((piece,), shards.vocab_size, 0, "", masks=masks)))
    return parts
