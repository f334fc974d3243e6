"""Bytes <-> values: one canonical encoding, derived from the annotations of frozen dataclasses.

A message class is its own table: every field is annotated with its layout (`U64`, `Hash`,
`Annotated[tuple[Vote, ...], Many(64)]`), and fields follow each other in order. Integers are
little-endian, there are no floats and no maps, every count has a limit, and a value has exactly one
encoding: decoding refuses trailing bytes, a flag that is neither 0 nor 1, and every length that
is not covered by the bytes at hand *before* it makes anything of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import groupby
from operator import attrgetter
from struct import Struct
from struct import error as StructError
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

Value = TypeVar("Value")


class MalformedError(ValueError):
    """Bytes that are not the one encoding of any value of the type asked for."""


@dataclass(frozen=True, slots=True)
class Integer:
    """A little-endian integer of `size_bytes`, two's complement if `signed`."""

    size_bytes: int
    signed: bool = False


@dataclass(frozen=True, slots=True)
class Exactly:
    """Bytes of one fixed length."""

    length: int


@dataclass(frozen=True, slots=True)
class AtMost:
    """Bytes of varying length behind a 32-bit length."""

    length_max: int


@dataclass(frozen=True, slots=True)
class Many:
    """A tuple behind a 16-bit count."""

    count_max: int


@dataclass(frozen=True, slots=True)
class OneOf:
    """A value of one of these classes behind its one-byte tag (its position in the table)."""

    classes: tuple[type, ...]


U8 = Annotated[int, Integer(1)]
U16 = Annotated[int, Integer(2)]
U32 = Annotated[int, Integer(4)]
U64 = Annotated[int, Integer(8)]
I32 = Annotated[int, Integer(4, signed=True)]
Hash = Annotated[bytes, Exactly(32)]
PeerId = Annotated[bytes, Exactly(32)]
Signature = Annotated[bytes, Exactly(64)]

Writer = Callable[[Any, bytearray], None]
Reader = Callable[[bytes, int], tuple[Any, int]]  # (data, position) -> (value, next position)


def encode(value: object) -> bytes:
    """Return the canonical bytes of a message; a value that its limits forbid is our own bug.

    Raises:
        OverflowError: if an integer is larger than its layout.
    """
    kind: Any = type(value)
    out = bytearray()
    _coder(kind)[0](value, out)
    return bytes(out)


def decode(kind: type[Value], data: bytes) -> Value:
    """Return the value of type `kind` that `data` encodes.

    Raises:
        MalformedError: if `data` is anything but the canonical encoding of such a value.
    """
    layout: Any = kind
    value, end = _coder(layout)[1](data, 0)
    if end != len(data):
        raise MalformedError(f"{len(data) - end} bytes too many")
    return value  # type: ignore[no-any-return]


def _take(data: bytes, start: int, length: int) -> tuple[bytes, int]:
    end = start + length
    if end > len(data):
        raise MalformedError("too short")
    return data[start:end], end


@cache
def _coder(kind: Any) -> tuple[Writer, Reader]:
    if get_origin(kind) is Annotated:
        inner, layout = get_args(kind)[:2]
        return _annotated(inner, layout)
    if get_origin(kind) in (UnionType, Union):
        options = [option for option in get_args(kind) if option is not NoneType]
        assert len(options) == 1 and NoneType in get_args(kind), kind
        return _optional(*_coder(options[0]))
    if kind is bool:
        return (lambda value, out: out.append(1 if value else 0)), _read_bool
    assert is_dataclass(kind), f"{kind} has no layout"
    return _record(kind)


def _annotated(inner: Any, layout: object) -> tuple[Writer, Reader]:
    match layout:
        case Integer(size_bytes, signed):
            return _integer(size_bytes, signed)
        case Exactly(length):
            return _exactly(length)
        case AtMost(length_max):
            return _at_most(length_max)
        case Many(count_max):
            return _many(*_coder(get_args(inner)[0]), count_max)
        case OneOf(classes):
            return _one_of(classes)
    raise AssertionError(f"unknown layout {layout}")


def _integer(size_bytes: int, signed: bool) -> tuple[Writer, Reader]:
    def write(value: int, out: bytearray) -> None:
        out += value.to_bytes(size_bytes, "little", signed=signed)

    def read(data: bytes, start: int) -> tuple[int, int]:
        piece, end = _take(data, start, size_bytes)
        return int.from_bytes(piece, "little", signed=signed), end

    return write, read


def _exactly(length: int) -> tuple[Writer, Reader]:
    def write(value: bytes, out: bytearray) -> None:
        assert len(value) == length, (len(value), length)
        out += value

    return write, lambda data, start: _take(data, start, length)


def _at_most(length_max: int) -> tuple[Writer, Reader]:
    def write(value: bytes, out: bytearray) -> None:
        assert len(value) <= length_max, (len(value), length_max)
        out += len(value).to_bytes(4, "little")
        out += value

    def read(data: bytes, start: int) -> tuple[bytes, int]:
        piece, position = _take(data, start, 4)
        length = int.from_bytes(piece, "little")
        if length > length_max:
            raise MalformedError("too long")
        return _take(data, position, length)

    return write, read


def _many(write_item: Writer, read_item: Reader, count_max: int) -> tuple[Writer, Reader]:
    def write(values: tuple[Any, ...], out: bytearray) -> None:
        assert len(values) <= count_max, (len(values), count_max)
        out += len(values).to_bytes(2, "little")
        for value in values:
            write_item(value, out)

    def read(data: bytes, start: int) -> tuple[tuple[Any, ...], int]:
        piece, position = _take(data, start, 2)
        count = int.from_bytes(piece, "little")
        if count > count_max:
            raise MalformedError("too many")
        values = []
        for _ in range(count):
            value, position = read_item(data, position)
            values.append(value)
        return tuple(values), position

    return write, read


def _one_of(classes: tuple[type, ...]) -> tuple[Writer, Reader]:
    def write(value: object, out: bytearray) -> None:
        kind: Any = type(value)
        out.append(classes.index(kind))
        _coder(kind)[0](value, out)

    def read(data: bytes, start: int) -> tuple[Any, int]:
        piece, position = _take(data, start, 1)
        if piece[0] >= len(classes):
            raise MalformedError("unknown tag")
        return _coder(classes[piece[0]])[1](data, position)

    return write, read


def _optional(write_some: Writer, read_some: Reader) -> tuple[Writer, Reader]:
    def write(value: object, out: bytearray) -> None:
        out.append(0 if value is None else 1)
        if value is not None:
            write_some(value, out)

    def read(data: bytes, start: int) -> tuple[Any, int]:
        present, position = _read_bool(data, start)
        return read_some(data, position) if present else (None, position)

    return write, read


def _read_bool(data: bytes, start: int) -> tuple[bool, int]:
    piece, end = _take(data, start, 1)
    if piece[0] > 1:
        raise MalformedError("a flag is 0 or 1")
    return piece[0] == 1, end


def _record(kind: Any) -> tuple[Writer, Reader]:
    hints = get_type_hints(kind, include_extras=True)
    runs = groupby(fields(kind), key=lambda field: bool(_struct_format(hints[field.name])))
    writers: list[tuple[Callable[[object], Any], Writer]] = []
    readers: list[tuple[bool, Reader]] = []  # whether it reads several fields at once
    for is_fixed, run in runs:
        names = [field.name for field in run]
        if is_fixed and len(names) > 1:
            write_fields, read_fields = _fixed_fields(names, [hints[name] for name in names])
            writers.append((attrgetter(*names), write_fields))
            readers.append((True, read_fields))
        else:
            coders = [_coder(hints[name]) for name in names]
            writers += zip(map(attrgetter, names), (write for write, _ in coders), strict=True)
            readers += [(False, read_field) for _, read_field in coders]

    def write(value: object, out: bytearray) -> None:
        for part_of, write_part in writers:
            write_part(part_of(value), out)

    def read(data: bytes, start: int) -> tuple[Any, int]:
        values: list[Any] = []
        position = start
        for are_several, read_part in readers:
            value, position = read_part(data, position)
            if are_several:
                values += value
            else:
                values.append(value)
        return kind(*values), position

    return write, read


def _struct_format(hint: Any) -> str:
    """Return what `struct` calls a layout of fixed length, or "" for any other."""
    match get_args(hint)[1] if get_origin(hint) is Annotated else None:
        case Integer(size_bytes, signed):
            letter = {1: "b", 2: "h", 4: "i", 8: "q"}[size_bytes]
            return letter if signed else letter.upper()
        case Exactly(length):
            return f"{length}s"
    return ""


def _fixed_fields(names: list[str], hints: list[Any]) -> tuple[Writer, Reader]:
    """Write and read neighbouring fields of fixed length in one go."""
    layout = Struct("<" + "".join(map(_struct_format, hints)))
    layouts = enumerate(get_args(hint)[1] for hint in hints)
    lengths = [(i, one.length) for i, one in layouts if isinstance(one, Exactly)]

    def write(values: tuple[Any, ...], out: bytearray) -> None:
        for i, length in lengths:  # struct would cut or fill them
            assert len(values[i]) == length, (names[i], length)
        try:
            out += layout.pack(*values)
        except StructError as error:
            raise OverflowError(str(error)) from error

    def read(data: bytes, start: int) -> tuple[Any, int]:
        end = start + layout.size
        if end > len(data):
            raise MalformedError("too short")
        return layout.unpack_from(data, start), end

    return write, read
