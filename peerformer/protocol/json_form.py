"""Messages as JSON, for files that people hand on: derived from the annotations, like the bytes.

Bytes are lower-case hexadecimal, integers numbers, a record an object with exactly its fields, a
tuple a list, and one of several classes an object whose one key is the class in snake case.
Reading is strict: what is unknown, missing, out of range or written otherwise is refused, and the
refusal names its place. Nothing is hashed or signed in this form; `codec` has the bytes.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from peerformer.events import snake_case
from peerformer.protocol.codec import AtMost, Exactly, Integer, MalformedError, Many, OneOf

Value = TypeVar("Value")
Shower = Callable[[Any], Any]
Reader = Callable[[Any, str], Any]  # (data, its place, for the refusal) -> value

HEXADECIMAL = frozenset("0123456789abcdef")


def to_json(value: object, kind: Any = None) -> Any:
    """Return a message as what `json.dumps` takes; `kind` is its annotation if not its class."""
    layout: Any = type(value) if kind is None else kind
    return _form(layout)[0](value)


def from_json(kind: type[Value], data: object) -> Value:
    """Return the message of type `kind` that `json.loads` read as `data`.

    Raises:
        MalformedError: if it is anything but the JSON form of such a message; names the place.
    """
    layout: Any = kind
    return _form(layout)[1](data, "")  # type: ignore[no-any-return]


@cache
def _form(kind: Any) -> tuple[Shower, Reader]:
    if get_origin(kind) is Annotated:
        inner, layout = get_args(kind)[:2]
        return _annotated(inner, layout)
    if get_origin(kind) in (UnionType, Union):
        options = [option for option in get_args(kind) if option is not NoneType]
        assert len(options) == 1 and NoneType in get_args(kind), kind
        return _optional(*_form(options[0]))
    if kind is bool:
        return (lambda value: value), _read_bool
    assert is_dataclass(kind), f"{kind} has no layout"
    return _record(kind)


def _annotated(inner: Any, layout: object) -> tuple[Shower, Reader]:
    match layout:
        case Integer(size_bytes, signed):
            return _integer(size_bytes, signed)
        case Exactly(length):
            return _bytes(length, length)
        case AtMost(length_max):
            return _bytes(0, length_max)
        case Many(count_max):
            return _many(*_form(get_args(inner)[0]), count_max)
        case OneOf(classes):
            return _one_of(classes)
    raise AssertionError(f"unknown layout {layout}")


def _refused(place: str, what: str) -> MalformedError:
    return MalformedError(f"{place or 'at the top'}: {what}")


def _integer(size_bytes: int, signed: bool) -> tuple[Shower, Reader]:
    low = -(1 << 8 * size_bytes - 1) if signed else 0
    high = low + (1 << 8 * size_bytes)

    def read(data: Any, place: str) -> int:
        if type(data) is not int or not low <= data < high:  # a flag is an int to Python
            raise _refused(place, f"not a whole number from {low} to {high - 1}")
        return data

    return (lambda value: value), read


def _bytes(length_min: int, length_max: int) -> tuple[Shower, Reader]:
    wanted = f"{2 * length_max}" if length_min == length_max else f"at most {2 * length_max}"

    def read(data: Any, place: str) -> bytes:
        fits = isinstance(data, str) and 2 * length_min <= len(data) <= 2 * length_max
        if not fits or len(data) % 2 or not HEXADECIMAL.issuperset(data):
            raise _refused(place, f"not {wanted} lower-case hexadecimal digits, two a byte")
        return bytes.fromhex(data)

    return (lambda value: value.hex()), read


def _many(show_item: Shower, read_item: Reader, count_max: int) -> tuple[Shower, Reader]:
    def read(data: Any, place: str) -> tuple[Any, ...]:
        if not isinstance(data, list) or len(data) > count_max:
            raise _refused(place, f"not a list of at most {count_max}")
        return tuple(read_item(item, f"{place}[{index}]") for index, item in enumerate(data))

    return (lambda values: [show_item(value) for value in values]), read


def _one_of(classes: tuple[type, ...]) -> tuple[Shower, Reader]:
    by_name = {snake_case(kind.__name__): kind for kind in classes}

    def show(value: object) -> dict[str, Any]:
        kind: Any = type(value)
        assert kind in classes, kind
        return {snake_case(kind.__name__): _form(kind)[0](value)}

    def read(data: Any, place: str) -> Any:
        name = next(iter(data)) if isinstance(data, dict) and len(data) == 1 else None
        if name not in by_name:
            raise _refused(place, f"not an object of one of {', '.join(by_name)}")
        return _form(by_name[name])[1](data[name], _within(place, name))

    return show, read


def _optional(show_some: Shower, read_some: Reader) -> tuple[Shower, Reader]:
    def show(value: object) -> Any:
        return None if value is None else show_some(value)

    return show, lambda data, place: None if data is None else read_some(data, place)


def _read_bool(data: Any, place: str) -> bool:
    if not isinstance(data, bool):
        raise _refused(place, "neither true nor false")
    return data


def _record(kind: Any) -> tuple[Shower, Reader]:
    hints = get_type_hints(kind, include_extras=True)
    forms = {field.name: _form(hints[field.name]) for field in fields(kind)}

    def show(value: object) -> dict[str, Any]:
        return {name: form[0](getattr(value, name)) for name, form in forms.items()}

    def read(data: Any, place: str) -> Any:
        if not isinstance(data, dict):
            raise _refused(place, f"not an object with {', '.join(forms)}")
        for name in data:
            if name not in forms:
                raise _refused(place, f"{name!r:.40} is no field of it")
        for name in forms:
            if name not in data:
                raise _refused(place, f"{name} is missing")
        values = [form[1](data[name], _within(place, name)) for name, form in forms.items()]
        return kind(*values)

    return show, read


def _within(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
