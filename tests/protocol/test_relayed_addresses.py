"""Addresses that lead through a relay: read, written, grouped, and believed of nobody else."""

import pytest

from peerformer.protocol.addresses import (
    group_of,
    iroh_address,
    is_local,
    leads_to,
    offered_relay,
    relay_offer,
    relayed_address,
    source_group_of,
    through_iroh,
    through_relay,
)
from peerformer.protocol.discovery import AddressBook
from peerformer.protocol.messages import ADDRESS_SIZE_MAX
from tests.protocol.test_discovery import CHAIN, NOW, keys_of, public, record

PEER = bytes(range(32))
LONGEST = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"


@pytest.mark.parametrize("relay", ["45.83.4.9:8888", LONGEST, "relay.example.org:1"])
def test_a_relayed_address_and_an_offer_are_read_as_written_and_fit(relay: str) -> None:
    address = relayed_address(relay, PEER)
    assert through_relay(address) == (relay, PEER) and offered_relay(address) is None
    assert offered_relay(relay_offer(relay)) == relay and through_relay(relay_offer(relay)) is None
    assert len(address) <= ADDRESS_SIZE_MAX
    assert through_relay(relay) is None and offered_relay(relay) is None


@pytest.mark.parametrize("place", ["45.83.4.9:8888", LONGEST, "https://relay.example.org"])
def test_an_iroh_address_is_read_as_written_fits_and_leads_to_its_peer_alone(place: str) -> None:
    address = iroh_address(place, PEER)
    assert through_iroh(address) == (place, PEER) and through_relay(address) is None
    assert len(address) <= ADDRESS_SIZE_MAX
    assert leads_to(address, PEER) and not leads_to(address, bytes(32))
    bare = place.removeprefix("https://")
    assert group_of(address) == group_of(bare if ":" in bare else f"{bare}:443")


@pytest.mark.parametrize(
    "text", ["relay:", "relay:/", "relay:a:1/12", f"relay:a:1/{'g' * 64}", f"a:1/{PEER.hex()}"]
)
def test_what_is_no_relayed_address_leads_nowhere(text: str) -> None:
    assert through_relay(text) is None
    assert not leads_to(text, PEER) or not text.startswith("relay:")


def test_a_relayed_address_belongs_to_the_network_of_its_relay() -> None:
    """A machine that relays for a thousand peers is one operator's, as if it had them all."""
    relay = "45.83.4.7:8888"
    address = relayed_address(relay, PEER)
    assert group_of(address) == group_of(relay) and source_group_of(address) == group_of(relay)
    assert is_local(relayed_address("192.168.1.2:8888", PEER)) and not is_local(address)


def test_a_record_is_dialled_where_it_leads_to_its_peer_and_its_offers_are_kept_apart() -> None:
    book, keys = AddressBook(PEER, CHAIN, PEER), keys_of(1)
    mine = relayed_address("45.83.4.7:1", keys.peer_id)
    other = relayed_address("45.83.4.7:1", PEER)
    told = record(1, public(1), relay_offer(public(1)), mine, other, "relay:nonsense/")
    assert book.learn(told, public(1), NOW) is None
    entry = book.entries[keys.peer_id]
    assert entry.addresses == (public(1), mine) and entry.relays == (public(1),)


def test_a_record_of_offers_alone_is_none_to_dial() -> None:
    book = AddressBook(PEER, CHAIN, PEER)
    assert book.learn(record(1, relay_offer(public(1))), public(1), NOW)
