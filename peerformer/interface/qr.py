"""A line of text as a QR code for a terminal: two rows of modules in each line of half blocks."""

from collections.abc import Sequence

import segno

BORDER_MODULES = 2  # the standard asks for 4; readers of today are content with less
BLOCKS = {(0, 0): "█", (0, 1): "▀", (1, 0): "▄", (1, 1): " "}  # light modules are drawn


def qr_lines(text: str) -> list[str]:
    """Return the lines of a QR code that holds a text, to be shown on a dark background.

    Terminals are dark and codes are read dark on light, so that the light modules are drawn; on a
    light background the code comes out inverted, which readers of today take as well.
    """
    code = segno.make(text, error="l", micro=False)
    rows: list[Sequence[int]] = [bytes(row) for row in code.matrix_iter(border=BORDER_MODULES)]
    if len(rows) % 2:
        rows.append(bytes(len(rows[0])))
    return [
        "".join(BLOCKS[bool(upper), bool(lower)] for upper, lower in zip(*pair, strict=True))
        for pair in zip(rows[::2], rows[1::2], strict=True)
    ]
