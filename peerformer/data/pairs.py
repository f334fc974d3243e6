"""`prompt|completion` pairs: documents of which only the completion is learned.

A text file is one of pairs where nearly every line has one delimiter with text on both sides;
`delimiter_of` has the rule. A delimiter that belongs to the text is written with a backslash
before it. Prompt and completion are joined by a space, which belongs to the completion, so that a
prompt has the same tokens whether a completion follows or somebody asks for one.

It knows nothing about files or tokens.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from peerformer.data.cleaning import clean
from peerformer.data.documents import Document

DELIMITERS = ("|", "*", "#")
AUTO = "auto"  # of the setting `data.pairs`, beside "off" and the delimiters
LINES_LOOKED_AT = 1_000  # of a file, to see whether it holds pairs
LINES_MIN = 2  # a single line with a bar in it may be anything
# Of the lines looked at, so many must be pairs: a few may be damaged. Markdown, code and tables
# of more than two columns have far fewer lines with one delimiter alone.
SHARE_MIN = 0.9
# Of these kinds of files only are pairs looked for unasked. Lines of other kinds, Markdown or
# Python, begin with such signs for reasons of their own.
SUFFIXES = frozenset({"", ".txt", ".text", ".pairs"})
NO_DELIMITER = "a line without the delimiter"
NOTHING_BESIDE = "a pair with an empty prompt or completion"

Note = Callable[[str, str], None]  # (place, reason)


def delimiter_of(lines: Iterable[str]) -> str | None:
    """Return the delimiter of the pairs that these lines are, or None if they are none.

    The first thousand lines that are not empty are looked at. A delimiter fits if at least 90 % of
    them, and two, have it exactly once (one after a backslash does not count) with text on both
    sides. Of several that fit, the one with the most such lines is taken; of equals, the first of
    `|`, `*`, `#`.
    """
    looked_at = _first(lines)
    if len(looked_at) < LINES_MIN:
        return None
    fitting = {
        delimiter: sum(_fits(line, delimiter) for line in looked_at) for delimiter in DELIMITERS
    }
    best = max(DELIMITERS, key=lambda delimiter: fitting[delimiter])
    enough = max(LINES_MIN, SHARE_MIN * len(looked_at))
    return best if fitting[best] >= enough else None


def _first(lines: Iterable[str]) -> list[str]:
    found: list[str] = []
    for line in lines:
        if line.strip():
            found.append(line)
        if len(found) >= LINES_LOOKED_AT:
            break
    return found


def _fits(line: str, delimiter: str) -> bool:
    places = list(_unescaped(delimiter).finditer(line))
    if len(places) != 1:
        return False
    return bool(line[: places[0].end() - 1].strip() and line[places[0].end() :].strip())


def _unescaped(delimiter: str) -> re.Pattern[str]:
    """A delimiter with an even number of backslashes before it: each two stand for one."""
    return re.compile(rf"(?<!\\)(?:\\\\)*{re.escape(delimiter)}")


def split_line(line: str, delimiter: str) -> tuple[str, str] | None:
    r"""Return prompt and completion of a line; None if no delimiter is in it.

    The line is cut at the first delimiter without a backslash before it. In both parts `\|`
    becomes `|`, and `\\` before a delimiter a backslash.
    """
    found = _unescaped(delimiter).search(line)
    if found is None:
        return None
    cut = found.end() - 1

    def plain(text: str, ending: str) -> str:
        run = rf"(\\+)(?={re.escape(delimiter)}{ending})"
        return re.sub(run, lambda match: "\\" * (len(match[1]) // 2), text)

    return plain(line[:cut], "|$").strip(), plain(line[cut + 1 :], "").strip()


def pair_document(source: str, prompt: str, completion: str) -> Document | None:
    """Return a pair as a document of which the completion is learned; None if a side is empty.

    White space between the two belongs to the completion; where there is none, a space is put.
    """
    before, after = prompt.rstrip(), completion.lstrip()
    space = prompt[len(before) :] + completion[: len(completion) - len(after)]
    between = "".join(sign for sign in space.replace("\r\n", "\n") if sign in " \t\n") or " "
    start, end = (clean(part.strip()).removesuffix("\n") for part in (before, after))
    if not start or not end:
        return None
    text = start + between + end
    return Document(source, text, ((len(start), len(text)),))


def line_documents(
    source: str, lines: Iterable[str], delimiter: str, note: Note = lambda place, reason: None
) -> Iterator[Document]:
    """Yield the pairs of lines; `note` is told of each that is none, by its number."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        pair = split_line(line, delimiter)
        document = pair and pair_document(source, *pair)
        if document:
            yield document
        else:
            note(f"{source}:{number}", NO_DELIMITER if pair is None else NOTHING_BESIDE)


def is_pair(record: Mapping[str, Any]) -> bool:
    """Tell whether a record has the fields of a pair."""
    return isinstance(record.get("prompt"), str) and isinstance(record.get("completion"), str)


def record_document(source: str, record: Mapping[str, Any]) -> Document | None:
    """Return a record with a prompt and a completion as a document; None if a side is empty."""
    assert is_pair(record)
    return pair_document(source, record["prompt"], record["completion"])
