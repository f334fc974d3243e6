"""A message has one JSON form, and what is not the form of any message is refused by its place."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.protocol import codec
from peerformer.protocol.codec import I32, U8, AtMost, Hash, MalformedError, Many, OneOf
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.json_form import from_json, to_json
from peerformer.protocol.light_client import RoundCertificate, RoundEvidence
from peerformer.protocol.messages import PACKETS, STATEMENTS

KINDS = (*STATEMENTS, *PACKETS, Genesis, RoundCertificate, RoundEvidence)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """A strategy for the values of an annotated layout, with short lists."""
    if get_origin(kind) is Annotated:
        inner, layout = get_args(kind)[:2]
        match layout:
            case codec.Integer(size_bytes, signed):
                low = -(1 << 8 * size_bytes - 1) if signed else 0
                return st.integers(low, low + (1 << 8 * size_bytes) - 1)
            case codec.Exactly(length):
                return st.binary(min_size=length, max_size=length)
            case codec.AtMost(length_max):
                return st.binary(max_size=min(length_max, 20))
            case codec.Many():
                return st.lists(values(get_args(inner)[0]), max_size=2).map(tuple)
            case codec.OneOf(classes):
                return st.one_of([values(one) for one in classes])
    if NoneType in get_args(kind):
        return st.one_of([st.none() if k is NoneType else values(k) for k in get_args(kind)])
    if kind is bool:
        return st.booleans()
    assert is_dataclass(kind)
    hints = get_type_hints(kind, include_extras=True)
    return st.tuples(*(values(hints[field.name]) for field in fields(kind))).map(
        lambda parts: kind(*parts)
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_message_comes_back_from_its_json(kind: Any) -> None:
    @settings(max_examples=10, deadline=None, print_blob=True)
    @given(values(kind))
    def check(value: Any) -> None:
        text = json.dumps(to_json(value))
        assert from_json(kind, json.loads(text)) == value
        assert json.dumps(to_json(from_json(kind, json.loads(text)))) == text

    check()


@dataclass(frozen=True, slots=True)
class Feather:
    """One of two."""

    colour: U8


@dataclass(frozen=True, slots=True)
class LongTail:
    """The other."""

    centimetres: I32


@dataclass(frozen=True, slots=True)
class Bird:
    """Every layout once."""

    ring: Hash
    song: Annotated[bytes, AtMost(2)]
    flies: bool
    age: U8 | None
    parts: Annotated[tuple[Annotated[Feather | LongTail, OneOf((Feather, LongTail))], ...], Many(2)]


BIRD = Bird(b"\xab" * 32, b"\1", True, None, (Feather(1), LongTail(-2)))


def test_the_form_is_the_one_that_the_page_describes() -> None:
    assert to_json(BIRD) == {
        "ring": "ab" * 32,
        "song": "01",
        "flies": True,
        "age": None,
        "parts": [{"feather": {"colour": 1}}, {"long_tail": {"centimetres": -2}}],
    }


def put(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda form: form.__setitem__(name, value)


WRONG: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (put("wings", 2), "at the top: 'wings'"),
    (lambda form: form.pop("song"), "at the top: song is missing"),
    (put("ring", "ab" * 31), "ring: not 64"),
    (put("ring", "AB" * 32), "ring: "),
    (put("ring", "0x" + "ab" * 31), "ring: "),
    (put("ring", 5), "ring: "),
    (put("song", "0"), "song: "),
    (put("song", " 01 "), "song: "),
    (put("song", "010203"), "song: not at most 4"),
    (put("flies", 1), "flies: "),
    (put("flies", "true"), "flies: "),
    (put("age", True), "age: "),
    (put("age", 1.0), "age: "),
    (put("age", -1), "age: "),
    (put("age", 256), "age: not a whole number from 0 to 255"),
    (put("age", "1"), "age: "),
    (put("parts", [{"feather": {"colour": 1}}] * 3), "parts: not a list of at most 2"),
    (put("parts", {"feather": {"colour": 1}}), "parts: "),
    (put("parts", [{"beak": {}}]), "parts[0]: not an object of one of feather, long_tail"),
    (put("parts", [{}]), "parts[0]: "),
    (put("parts", [{"feather": {"colour": 1}, "long_tail": {"centimetres": 1}}]), "parts[0]: "),
    (put("parts", [None]), "parts[0]: "),
    (put("parts", [{"feather": {"colour": None}}]), "parts[0].feather.colour: "),
    (put("parts", [{"feather": [1]}]), "parts[0].feather: not an object with colour"),
]


@pytest.mark.parametrize(("change", "place"), WRONG, ids=[str(n) for n in range(len(WRONG))])
def test_what_is_written_otherwise_is_refused_by_its_place(
    change: Callable[[dict[str, Any]], object], place: str
) -> None:
    form = copy.deepcopy(to_json(BIRD))
    assert from_json(Bird, form) == BIRD
    change(form)
    with pytest.raises(MalformedError) as caught:
        from_json(Bird, form)
    assert str(caught.value).startswith(place)


@pytest.mark.parametrize("data", [None, [], "text", 1, float("nan"), True])
def test_what_is_no_object_is_no_message(data: object) -> None:
    with pytest.raises(MalformedError, match="at the top"):
        from_json(Bird, data)
