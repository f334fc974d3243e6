"""Text with its accidents removed, and cut into pieces, as a whole or as a stream of blocks.

One kind of line end, composed characters, no control characters, no space before a line end, few
blank lines. The streams give what the functions on whole text give, and hold a few megabytes.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator

DOCUMENT_CHARACTERS_MAX = 65_536  # a longer file is cut, so that a share of it can be held out
LINE_CHARACTERS_MAX = 1 << 20  # of a line that is cleaned as a whole

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_CONTROL_BYTES = bytes(code for code in range(0x80) if _CONTROL.match(chr(code)))
_TRAILING = re.compile(r"[ \t]+\n")
_BLANK_LINES = re.compile(r"\n{4,}")
_PLAIN = re.compile(r"[0-9A-Za-z]")


def clean(text: str) -> str:
    """Return text with one kind of line end, no control characters, no trailing space.

    Composes characters (NFC) and keeps at most two blank lines in a row; all else stays.
    """
    text = _without_control(_with_one_line_end(text))
    if not text.strip():
        return ""
    return _without_blank_runs(_cleaned_lines(text + "\n")).strip("\n") + "\n"


def clean_stream(blocks: Iterable[str]) -> Iterator[str]:
    """Yield what `clean` makes of all blocks together, piece by piece.

    Lines above LINE_CHARACTERS_MAX are cleaned in parts.
    """
    begun, newlines = False, 0  # newlines at the end of what came are held back, three at most
    blank = ""  # what came before the first letter
    for text in _whole_lines(blocks):
        text = blank + _cleaned_lines(_without_control(text))
        blank = "" if begun or text.strip() else text[-LINE_CHARACTERS_MAX:]
        if blank:
            continue
        text = _without_blank_runs("\n" * newlines + text)
        shown = text.rstrip("\n") if begun else text.strip("\n")
        newlines = min(3, len(text) - len(text.rstrip("\n")))
        if shown:
            begun = True
            yield shown
    if begun:
        yield "\n"


def _with_one_line_end(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _without_control(text: str) -> str:
    """Drop control characters; bytes are looked through faster, so ASCII is that way."""
    if not text.isascii():
        return _CONTROL.sub("", text)
    return text.encode("ascii").translate(None, _CONTROL_BYTES).decode("ascii")


def _cleaned_lines(text: str) -> str:
    """Compose characters and drop the space before line ends; looking first is what is cheap."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return _TRAILING.sub("\n", text) if " \n" in text or "\t\n" in text else text


def _without_blank_runs(text: str) -> str:
    return _BLANK_LINES.sub("\n\n\n", text) if "\n\n\n\n" in text else text


def _whole_lines(blocks: Iterable[str]) -> Iterator[str]:
    """Yield text that ends where a line ends, but for the last; line ends are one newline."""
    held = ""
    for block in blocks:
        held += block
        end = held.rfind("\n") + 1
        if not end and len(held) > LINE_CHARACTERS_MAX:
            # Before a letter of ASCII nothing composes, and no space is at the end of a line.
            places = [found.start() for found in _PLAIN.finditer(held, len(held) - 1_000)]
            end = places[-1] if places else len(held) - 1
        if end:
            yield _with_one_line_end(held[:end])
            held = held[end:]
    yield _with_one_line_end(held) + "\n"


def cut(text: str, characters_max: int = DOCUMENT_CHARACTERS_MAX) -> Iterator[str]:
    """Yield pieces of at most so many characters, cut at blank lines where there are any."""
    return cut_stream((text,), characters_max)


def cut_stream(
    blocks: Iterable[str], characters_max: int = DOCUMENT_CHARACTERS_MAX
) -> Iterator[str]:
    """Yield what `cut` makes of all blocks together."""
    held, start = "", 0  # pieces are taken by position: what remains is not copied
    for block in blocks:
        held, start = held[start:] + block, 0
        while len(held) - start > characters_max:
            most = start + characters_max
            end = held.rfind("\n\n", start + characters_max // 2, most)
            end = held.rfind("\n", start + 1, most) if end < 0 else end + 1
            end = most if end < 0 else end + 1
            yield held[start:end]
            start = end
    if held[start:].strip():
        yield held[start:]
