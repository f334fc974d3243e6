"""How each shape of state is printed as JSON and read back: leaves, containers, shared parts.

A form is a pair of functions: value -> what `json.dumps` takes, and back. Both are told the place,
which names a part for those that share it and is what a refusal names. Bytes are lower-case
hexadecimal; a mapping with other keys than text or bytes is a list of pairs. Reading takes
exactly what printing makes and raises MalformedError on anything else. Which class has which
fields is `printout`'s business.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from types import FunctionType, MethodType
from typing import Any, get_type_hints

from peerformer.protocol.codec import MalformedError
from peerformer.protocol.json_form import HEXADECIMAL
from peerformer.protocol.messages import Packet

SAME = "same as "
MOST = 1 << 64  # no count, round or time in milliseconds reaches it


@dataclass(slots=True)
class Given:
    """What a restored machine is given anew, and the parts read so far, by place."""

    seed: bytes
    unpack: Callable[[bytes], Packet]
    placed: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # place -> (kind, part)


Printed = dict[int, tuple[Any, str]]  # id of a part -> its kind, and where it was printed
Shower = Callable[[Any, str, Printed], Any]
Reader = Callable[[Any, str, Given], Any]
Form = tuple[Shower, Reader]


def refused(place: str, what: str) -> MalformedError:
    """Return the refusal of what stands at a place."""
    return MalformedError(f"{place}: {what}")


def shared(kind: Any, form: Form) -> Form:
    """Print what parts may share in full where it is met first, then name that place."""

    def show(value: Any, place: str, printed: Printed) -> Any:
        known_as, first = printed.setdefault(id(value), (kind, place))
        assert known_as == kind, f"{place} is declared otherwise than {first}"
        return form[0](value, place, printed) if first == place else SAME + first

    def read(data: Any, place: str, given: Given) -> Any:
        if not isinstance(data, str):
            made = form[1](data, place, given)
            given.placed[place] = (kind, made)
            return made
        known = given.placed.get(data.removeprefix(SAME))
        if known is None or known[0] != kind:
            raise refused(place, f"{data!r:.100} is no place of the same kind before it")
        return known[1]

    return show, read


def union(by_name: dict[str, Form], name_of: Callable[[Any], str]) -> Form:
    """An object whose one key is the class."""

    def show(value: Any, place: str, printed: Printed) -> Any:
        name = name_of(value)
        return {name: by_name[name][0](value, f"{place}.{name}", printed)}

    def read(data: Any, place: str, given: Given) -> Any:
        name = next(iter(data)) if isinstance(data, dict) and len(data) == 1 else None
        if name not in by_name:
            raise refused(place, f"not an object of one of {', '.join(by_name)}")
        return by_name[name][1](data[name], f"{place}.{name}", given)

    return show, read


def optional(form: Form) -> Form:
    """Null for what is absent."""
    show, read = form
    return (
        lambda value, place, printed: None if value is None else show(value, place, printed),
        lambda data, place, given: None if data is None else read(data, place, given),
    )


def sequence(make: Any, item: Form, count_max: int | None = None) -> Form:
    """A list, whatever `make` makes of it; that of a set is sorted."""
    show_item, read_item = item

    def show(values: Any, place: str, printed: Printed) -> Any:
        ordered = sorted(values) if make in (set, frozenset) else values
        return [show_item(value, f"{place}[{i}]", printed) for i, value in enumerate(ordered)]

    def read(data: Any, place: str, given: Given) -> Any:
        if not isinstance(data, list) or (count_max is not None and len(data) > count_max):
            raise refused(place, "not a list, or too long a one")
        made = make(read_item(item, f"{place}[{i}]", given) for i, item in enumerate(data))
        if len(made) != len(data):
            raise refused(place, "an element twice")
        return made

    return show, read


def product(forms: tuple[Form, ...]) -> Form:
    """A tuple of so many unlike things, as a list."""

    def show(values: Any, place: str, printed: Printed) -> Any:
        pairs = zip(forms, values, strict=True)
        return [form[0](value, f"{place}[{i}]", printed) for i, (form, value) in enumerate(pairs)]

    def read(data: Any, place: str, given: Given) -> Any:
        if not isinstance(data, list) or len(data) != len(forms):
            raise refused(place, f"not a list of {len(forms)}")
        pairs = zip(forms, data, strict=True)
        return tuple(form[1](item, f"{place}[{i}]", given) for i, (form, item) in enumerate(pairs))

    return show, read


def bounded(items: Form) -> Form:
    """A deque, with how many it may hold."""
    show_items, read_items = items

    def show(values: Any, place: str, printed: Printed) -> Any:
        return {"at_most": values.maxlen, "items": show_items(values, place, printed)}

    def read(data: Any, place: str, given: Given) -> Any:
        if not isinstance(data, dict) or data.keys() != {"at_most", "items"}:
            raise refused(place, "not an object with at_most, items")
        values, most = read_items(data["items"], place, given), data["at_most"]
        if type(most) is not int or not len(values) <= most <= MOST:
            raise refused(place, "holds more than it may")
        return deque(values, most)

    return show, read


def mapping(pairs: Form, *, as_object: bool) -> Form:
    """An object if the keys are text or bytes, else a list of pairs; the order is kept."""
    show_pairs, read_pairs = pairs

    def show(values: Any, place: str, printed: Printed) -> Any:
        shown = show_pairs(values.items(), place, printed)
        return dict(shown) if as_object else shown

    def read(data: Any, place: str, given: Given) -> Any:
        if as_object:
            if not isinstance(data, dict):
                raise refused(place, "not an object")
            data = [[key, value] for key, value in data.items()]
        read_all = read_pairs(data, place, given)
        made = dict(read_all)
        if len(made) != len(read_all):
            raise refused(place, "a key twice")
        return made

    return show, read


def method(hints: list[Any]) -> Form:
    """A method of a part: the place of the part and the method's name."""

    def show(value: Any, place: str, printed: Printed) -> Any:
        return f"{printed[id(value.__self__)][1]}.{value.__name__}"

    def read(data: Any, place: str, given: Given) -> Any:
        owner, _, name = data.rpartition(".") if isinstance(data, str) else ("", "", "")
        part = given.placed.get(owner, (None, None))[1]
        function = vars(type(part)).get(name)
        is_one = isinstance(function, FunctionType)
        if not is_one or list(get_type_hints(function).values()) != hints:
            raise refused(place, "not such a method of a part before it")
        return MethodType(function, part)

    return show, read


def leaf(kind: type, fits: Callable[[Any], bool], what: str) -> Form:
    """What JSON has a notation for."""

    def read(data: Any, place: str, given: Given) -> Any:
        if type(data) is not kind or not fits(data):
            raise refused(place, f"not {what}")
        return data

    return (lambda value, place, printed: kind(value)), read


def _read_bytes(data: Any, place: str, given: Given) -> bytes:
    if not isinstance(data, str) or len(data) % 2 or not HEXADECIMAL.issuperset(data):
        raise refused(place, "not lower-case hexadecimal digits, two a byte")
    return bytes.fromhex(data)


LEAVES: dict[Any, Form] = {
    bool: leaf(bool, lambda data: True, "true or false"),
    int: leaf(int, lambda data: abs(data) < MOST, "a whole number below 2^64"),
    float: leaf(float, isfinite, "a number with a point"),
    str: leaf(str, lambda data: True, "text"),
    bytes: (lambda value, place, printed: value.hex(), _read_bytes),
}
