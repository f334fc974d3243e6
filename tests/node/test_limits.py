"""The limits in docs/network.md are those of the code, with their reasons."""

import re
from dataclasses import fields
from pathlib import Path

from peerformer.node import limits
from peerformer.node.limits import RelayLimits, TransportLimits

PAGE = Path(__file__).resolve().parents[2] / "docs" / "network.md"
LINE = re.compile(r"    (\w+): (?:int|float) = [^#]+# (.+)")


def in_words(name: str, value: float) -> str:
    """A value with its unit, as the page shows it."""
    if "seconds" in name and "bytes" not in name:
        return f"{value:g} s"
    a_second = "/s" if "per_second" in name else ""
    if "bytes" in name and value % (1 << 20) == 0:
        return f"{value / (1 << 20):,g} MiB{a_second}"
    if "bytes" in name and value % (1 << 10) == 0 and value < 1e6:
        return f"{value / (1 << 10):,g} KiB{a_second}"
    return f"{value / 1e6:,g} MB{a_second}" if "bytes" in name else f"{value:,g}"


def table_of(kind: type) -> list[str]:
    """The rows of the page's table for a class of limits."""
    reasons = dict(LINE.findall(Path(limits.__file__).read_text()))
    values = kind()
    return [
        f"| `{field.name}` | {in_words(field.name, getattr(values, field.name))} |"
        f" {reasons[field.name]} |"
        for field in fields(kind)
    ]


def test_the_page_states_every_limit_as_the_code_has_it() -> None:
    page = PAGE.read_text()
    for kind in (TransportLimits, RelayLimits):
        table = "\n".join(table_of(kind))
        assert table in page, f"docs/network.md should hold:\n{table}"


def test_the_page_states_the_detection_time_that_follows_from_the_limits() -> None:
    given = TransportLimits()
    seconds = given.silence_seconds_max + given.look_seconds
    assert f"within {seconds:g} seconds" in " ".join(PAGE.read_text().split())
