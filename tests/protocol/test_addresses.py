"""Which addresses count as one network, and which mean something at home only."""

import pytest

from peerformer.protocol.addresses import group_of, is_local, source_group_of


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("8.8.1.1:1", "8.8.200.2:2", True),
        ("8.8.1.1:1", "8.9.1.1:1", False),
        ("[::ffff:8.8.1.1]:1", "8.8.9.9:1", True),
        ("[2a01:4f8:1::1]:1", "[2a01:4f8:ffff::2]:9", True),
        ("[2a01:4f8::1]:1", "[2a01:4f9::1]:1", False),
        ("a.peers.example.org:1", "b.example.org:2", True),
        ("a.Example.org.:1", "b.example.org:2", True),
        ("a.example.org:1", "a.example.net:1", False),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("10.1.2.3:1", "10.1.2.4:1", False),
        ("[fd00::1]:1", "[fd00::1]:2", False),
        ("host-1:1", "host-2:1", False),
    ],
)
def test_addresses_of_one_network_are_one_group(one: str, other: str, same: bool) -> None:
    assert (group_of(one) == group_of(other)) is same


def test_anything_at_all_has_a_group() -> None:
    for text in ("", ":", "[", "[::1", "::1", "1.2.3:4", "\x00.\x00:1", "a" * 300, "..:..", "%:%"):
        assert group_of(text) and source_group_of(text) and is_local(text) in (True, False)
    assert is_local("[fe80::1%eth0]:9") and is_local("printer.local:1") and is_local("0.0.0.0:1")
    assert not is_local("8.8.8.8:1") and not is_local("example.org:1")
