"""Every message has one encoding, and no bytes do anything worse than fail to decode."""

import tracemalloc
from typing import get_args

import pytest

from peerformer.protocol.attestations import Attestation
from peerformer.protocol.codec import MalformedError, decode, encode
from peerformer.protocol.messages import (
    BODY_SIZE_MAX,
    HEADERS_MAX,
    PACKET_SIZE_MAX,
    PACKETS,
    RECORDS_MAX,
    STATEMENTS,
    Bitmap,
    Envelope,
    Headers,
    Hello,
    Peers,
    QuorumCertificate,
    unpack,
)
from peerformer.protocol.newcomer_packets import GenesisBytes


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
