"""Every message has one encoding, and no bytes do anything worse than fail to decode."""

import tracemalloc
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.protocol import codec
from peerformer.protocol.codec import MalformedError, decode, encode
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.membership import Members
from peerformer.protocol.messages import (
    BODY_SIZE_MAX,
    HEADERS_MAX,
    PACKET_SIZE_MAX,
    PACKETS,
    RECORDS_MAX,
    STATEMENTS,
    Attestation,
    Bitmap,
    Certified,
    Envelope,
    GenesisBytes,
    Header,
    Headers,
    Hello,
    Peers,
    QuorumCertificate,
    TimeoutCertificate,
    pack,
    unpack,
)

KINDS = (
    *STATEMENTS,
    *PACKETS,
    Envelope,
    QuorumCertificate,
    TimeoutCertificate,
    Certified,
    Header,
    Genesis,
    Members,
)
EXAMPLES = settings(max_examples=15, deadline=None, print_blob=True)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for the values of an annotated layout."""
    if get_origin(kind) is Annotated:
        inner, layout = get_args(kind)[:2]
        match layout:
            case codec.Integer(size_bytes, signed):
                bits = 8 * size_bytes
                low = -(1 << bits - 1) if signed else 0
                return st.integers(low, low + (1 << bits) - 1)
            case codec.Exactly(length):
                return st.binary(min_size=length, max_size=length)
            case codec.AtMost(length_max):
                return st.binary(max_size=min(length_max, 40))
            case codec.Many(count_max):
                item = values(get_args(inner)[0])
                return st.lists(item, max_size=min(count_max, 2)).map(tuple)
            case codec.OneOf(classes):
                return st.one_of([values(option) for option in classes])
    if get_origin(kind) in (UnionType, Union):
        options = [option for option in get_args(kind) if option is not NoneType]
        return st.none() | values(options[0])
    if kind is bool:
        return st.booleans()
    assert is_dataclass(kind), kind
    hints = get_type_hints(kind, include_extras=True)
    return st.tuples(*(values(hints[field.name]) for field in fields(kind))).map(
        lambda parts: kind(*parts)  # type: ignore[operator]
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_encoded_decodes_to_the_same_value(kind: type) -> None:
    @EXAMPLES
    @given(values(kind))
    def check(value: Any) -> None:
        assert decode(kind, encode(value)) == value

    check()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_damaged_bytes_are_malformed_or_another_value_with_that_one_encoding(kind: type) -> None:
    @EXAMPLES
    @given(values(kind), st.data())
    def check(value: Any, data: st.DataObject) -> None:
        whole = encode(value)
        cut = data.draw(st.integers(0, len(whole) - 1))
        with pytest.raises(MalformedError):
            decode(kind, whole[:cut])
        with pytest.raises(MalformedError):
            decode(kind, whole + data.draw(st.binary(min_size=1, max_size=9)))
        flipped = bytearray(whole)
        flipped[cut] ^= data.draw(st.integers(1, 255))
        for damaged in (bytes(flipped), data.draw(st.binary(max_size=200))):
            try:
                other = decode(kind, damaged)
            except MalformedError:
                continue
            assert encode(other) == damaged

    check()


@settings(max_examples=300, deadline=None, print_blob=True)
@given(st.binary(max_size=300) | st.tuples(st.integers(0, 20), st.binary(max_size=300)))
def test_an_arbitrary_frame_unpacks_or_is_malformed(drawn: Any) -> None:
    frame = drawn if isinstance(drawn, bytes) else bytes((drawn[0],)) + drawn[1]
    try:
        packet = unpack(frame)
    except MalformedError:
        return
    assert pack(packet) == frame


def test_an_empty_an_oversized_and_an_unknown_frame_are_malformed() -> None:
    for frame in (b"", bytes(PACKET_SIZE_MAX + 1), bytes((len(PACKETS),)), b"\xff" * 9):
        with pytest.raises(MalformedError):
            unpack(frame)


def test_a_flag_or_tag_outside_its_range_is_malformed() -> None:
    hello = encode(Hello(1, bytes(32), 0, None))
    assert hello[-1] == 0
    for flag in (2, 255):
        with pytest.raises(MalformedError, match="flag"):
            decode(Hello, hello[:-1] + bytes((flag,)))
    for kind in (len(STATEMENTS), 255):
        with pytest.raises(MalformedError, match="unknown"):
            _ = Envelope(bytes(32), kind, b"", bytes(64)).statement


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (GenesisBytes, b"\xff\xff\xff\xff"),
        (GenesisBytes, (64 * 1024).to_bytes(4, "little") + b"short"),
        (Attestation, bytes(8) + b"\xff\xff"),
        (Attestation, bytes(8) + (256).to_bytes(2, "little")),
        (Headers, b"\xff\xff"),
        (Headers, (HEADERS_MAX + 1).to_bytes(2, "little") + bytes(4_000)),
        (QuorumCertificate, bytes(1 + 8 + 4 + 32) + b"\xff\xff\xff\x7f"),
    ],
)
def test_a_hostile_length_is_refused_before_anything_is_made_of_it(kind: type, data: bytes) -> None:
    with pytest.raises(MalformedError):  # the coders are built now, and counted to nobody
        decode(kind, data)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedError):
            decode(kind, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 1024, peak


def test_one_more_than_a_limit_is_refused_though_all_of_it_is_there() -> None:
    record = encode(Envelope(bytes(32), 0, b"", bytes(64)))
    for count in (RECORDS_MAX, RECORDS_MAX + 1):
        data = count.to_bytes(2, "little") + record * count
        if count == RECORDS_MAX:
            assert encode(decode(Peers, data)) == data
        else:
            with pytest.raises(MalformedError, match="too many"):
                decode(Peers, data)
    body = bytes(BODY_SIZE_MAX + 1)
    data = bytes(33) + len(body).to_bytes(4, "little") + body + bytes(64)
    with pytest.raises(MalformedError, match="too long"):
        decode(Envelope, data)


def test_a_value_beyond_its_limits_is_never_encoded() -> None:
    certificate = QuorumCertificate(True, 1, 0, bytes(32), bytes(33), ())
    assert get_args(Bitmap)[1].length_max == 32
    with pytest.raises(AssertionError):
        encode(certificate)
