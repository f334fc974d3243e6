"""Random values of any message, their bytes spelled out field by field, and damage to these.

All of it follows the annotations of the dataclasses, so a new message class is covered as soon as
it stands in a table. `spell` is a second, plain writer of the format: it says what the bytes are,
and where in them counts, lengths, flags, fields and items lie, for `damaged` to hit.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from random import Random
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from peerformer.protocol.codec import AtMost, Exactly, Integer, Many, OneOf, encode
from peerformer.protocol.messages import STATEMENTS, Envelope
from tests.mutations import mutate

FEW = (0, 1, 1, 2, 3)
SIZES = (0, 1, 2, 7, 31, 32, 33, 40)


@cache
def hints(kind: type) -> tuple[tuple[str, Any], ...]:
    """The fields of a dataclass with their layouts, in order."""
    found = get_type_hints(kind, include_extras=True)
    return tuple((each.name, found[each.name]) for each in fields(kind))  # type: ignore[arg-type]


@cache
def parts(layout: Any) -> tuple[Any, Any]:
    """What a layout is made of: (its marker, or Union, bool or a dataclass; what is inside)."""
    if get_origin(layout) is Annotated:
        inner, marker = get_args(layout)[:2]
        return marker, get_args(inner)[0] if isinstance(marker, Many) else inner
    if get_origin(layout) in (UnionType, Union):
        (some,) = (option for option in get_args(layout) if option is not NoneType)
        return Union, some
    assert layout is bool or is_dataclass(layout), layout
    return layout, None


def kinds_in(roots: Iterable[type]) -> tuple[type, ...]:
    """All dataclasses among `roots` and inside them, each once."""
    found: dict[type, None] = {}

    def visit(layout: Any) -> None:
        marker, inner = parts(layout)
        if isinstance(marker, OneOf):
            for option in marker.classes:
                visit(option)
        elif inner is not None and not isinstance(marker, Integer | Exactly | AtMost):
            visit(inner)
        elif is_dataclass(layout) and layout not in found:
            found[layout] = None  # type: ignore[index]
            for _, each in hints(layout):  # type: ignore[arg-type]
                visit(each)

    for root in roots:
        visit(root)
    return tuple(found)


# --- random values -----------------------------------------------------------------------------


def draw(layout: Any, random: Random) -> Any:
    """Return a random value of a layout: mostly small, with the extremes of every number."""
    marker, inner = parts(layout)
    match marker:
        case Integer(size_bytes, signed):
            low = -(1 << 8 * size_bytes - 1) if signed else 0
            high = low + (1 << 8 * size_bytes) - 1
            return random.choice((low, high, 0, 1, 2, high - 1, random.randint(low, high)))
        case Exactly(length):
            return random.choice((bytes(length), b"\xff" * length, random.randbytes(length)))
        case AtMost(length_max):
            return random.randbytes(min(length_max, random.choice(SIZES)))
        case Many(count_max):
            count = min(count_max, random.choice(FEW))
            return tuple(draw(inner, random) for _ in range(count))
        case OneOf(classes):
            return draw(random.choice(classes), random)
    if marker is Union:
        return draw(inner, random) if random.random() < 0.6 else None
    if marker is bool:
        return random.random() < 0.5
    if marker is Envelope and random.random() < 0.8:  # a body that decodes
        kind = random.randrange(len(STATEMENTS))
        body = encode(draw(STATEMENTS[kind], random))
        return Envelope(random.randbytes(32), kind, body, random.randbytes(64))
    return marker(*(draw(each, random) for _, each in hints(marker)))


def crowded(layout: Any) -> Any:
    """Return a value whose every count is at its limit, of the least that can be repeated.

    Bytes of varying length have two each: the shortest that Python does not share.
    """
    marker, inner = parts(layout)
    match marker:
        case Integer(size_bytes):
            return (1 << 8 * size_bytes - 1) - 1
        case Exactly(length):
            return bytes(length)
        case AtMost(length_max):
            return bytes(min(length_max, 2))
        case Many(count_max):
            return (crowded(inner),) * count_max
        case OneOf(classes):
            return min((crowded(each) for each in classes), key=lambda value: len(encode(value)))
    if marker is Union:
        return crowded(inner)
    if marker is bool:
        return True
    return marker(*(crowded(each) for _, each in hints(marker)))


# --- their bytes, spelled out --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Count:
    """A length or count of `size_bytes` at `start`, its limit, and the spans that it counts."""

    start: int
    size_bytes: int
    limit: int
    spans: tuple[tuple[int, int], ...]  # of items; for bytes, one span of all of them


@dataclass(slots=True)
class Spelled:
    """The bytes of a value, and what lies where."""

    data: bytearray = field(default_factory=bytearray)
    counts: list[Count] = field(default_factory=list)
    flags: list[tuple[int, int]] = field(default_factory=list)  # (place, how many values)
    spans: list[tuple[int, int]] = field(default_factory=list)  # of fields and items


def spell(layout: Any, value: Any, to: Spelled) -> Spelled:
    """Append the bytes of a value."""
    marker, inner = parts(layout)
    start = len(to.data)
    match marker:
        case Integer(size_bytes, signed):
            to.data += value.to_bytes(size_bytes, "little", signed=signed)
        case Exactly():
            to.data += value
        case AtMost(length_max):
            to.data += len(value).to_bytes(4, "little") + value
            to.counts.append(Count(start, 4, length_max, ((start + 4, len(to.data)),)))
        case Many(count_max):
            to.data += len(value).to_bytes(2, "little")
            ends = [len(to.data)]
            for item in value:
                spell(inner, item, to)
                ends.append(len(to.data))
            to.counts.append(Count(start, 2, count_max, tuple(pairwise(ends))))
        case OneOf(classes):
            to.flags.append((start, len(classes)))
            to.data.append(classes.index(type(value)))
            spell(type(value), value, to)
        case _ if marker is Union or marker is bool:
            to.flags.append((start, 2))
            to.data.append(0 if value is None or value is False else 1)
            if marker is Union and value is not None:
                spell(inner, value, to)
        case _:
            for name, each in hints(marker):
                spell(each, getattr(value, name), to)
    if len(to.data) > start:
        to.spans.append((start, len(to.data)))
    return to


# --- damage that knows the layout ----------------------------------------------------------------


def miscount(good: Spelled, other: Spelled, random: Random) -> bytes:
    """A count or length that does not fit what follows."""
    data, count = bytearray(good.data), random.choice(good.counts)
    top = (1 << 8 * count.size_bytes) - 1
    before = int.from_bytes(data[count.start : count.start + count.size_bytes], "little")
    numbers = (before - 1, before + 1, 0, count.limit, count.limit + 1, top, top // 2, top - 1)
    number = random.choice(numbers) & top
    data[count.start : count.start + count.size_bytes] = number.to_bytes(count.size_bytes, "little")
    return bytes(data)


def refill(good: Spelled, other: Spelled, random: Random) -> bytes:
    """A count that fits: one item more, one less, as many as allowed, or one more than that."""
    data, count = bytes(good.data), random.choice(good.counts)
    size, end = count.size_bytes, count.start + count.size_bytes
    is_bytes = size == 4
    if not count.spans or (is_bytes and random.random() < 0.9):
        return miscount(good, other, random)
    start, stop = random.choice(count.spans)
    now = stop - start if is_bytes else len(count.spans)
    item = data[start : start + 1] or b"\0" if is_bytes else data[start:stop]
    limits = (count.limit, count.limit + 1) if random.random() < 0.2 else (now + 1,)
    wanted = random.choice((*limits, now - 1))
    if wanted < now:
        data = data[:start] + data[start + 1 if is_bytes else stop :]
        wanted = max(now - 1, 0)
    else:
        data = data[:start] + item * (wanted - now) + data[start:]
    return data[: count.start] + wanted.to_bytes(size, "little") + data[end:]


def reorder(good: Spelled, other: Spelled, random: Random) -> bytes:
    """Two items of one count in each other's place."""
    data, spans = bytes(good.data), random.choice(good.counts).spans
    if len(spans) < 2:
        return misflag(good, other, random)
    (a, b), (c, d) = sorted(random.sample(spans, 2))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def misflag(good: Spelled, other: Spelled, random: Random) -> bytes:
    """A flag or tag that says something else, or nothing that there is."""
    if not good.flags:
        return mutate(bytes(good.data), bytes(other.data), random)
    data = bytearray(good.data)
    place, choices = random.choice(good.flags)
    data[place] = random.choice((choices, choices + 1, 0, 1, choices - 1, 0x80, 0xFF))
    return bytes(data)


def graft(good: Spelled, other: Spelled, random: Random) -> bytes:
    """A field or item of one message in place of another's, or once more."""
    start, end = random.choice(good.spans)
    data = bytes(good.data)
    match random.randrange(4):
        case 0:
            return data[:end] + data[start:end] + data[end:]
        case 1:
            return data[:start] + data[end:]
        case 2:
            a, b = random.choice(other.spans)
            return data[:start] + bytes(other.data[a:b]) + data[end:]
    return data[:start] + bytes(other.data[random.choice(other.spans)[0] :])


def damaged(good: Spelled, other: Spelled, random: Random) -> bytes:
    """One input: half of the damage is blind."""
    chance = random.random()
    if chance < 0.25 and good.counts:
        return random.choice((miscount, refill, refill, reorder))(good, other, random)
    if chance < 0.35:
        return misflag(good, other, random)
    if chance < 0.5:
        data = graft(good, other, random)
        return data if chance < 0.4 else mutate(data, bytes(other.data), random)
    return mutate(bytes(good.data), bytes(other.data), random)
