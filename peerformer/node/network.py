"""The network of one peer: its transport with all that it serves, and where it is reached.

What others ask of it is answered by the node, which is made after its network: connections cannot
arrive before the loop turns.
"""

from collections.abc import Callable

from peerformer.node.blobs import BlobStore
from peerformer.node.dialling import DialError
from peerformer.node.iroh_carrier import Iroh
from peerformer.node.lan import Lan, LanPeer, meet_on_lan
from peerformer.node.node import Node
from peerformer.node.probing import Prober
from peerformer.node.reach import Reach
from peerformer.node.reachability import Reachability
from peerformer.node.relay import Relay
from peerformer.node.transport import Transport
from peerformer.protocol.genesis import Genesis


async def open_network(
    seed: bytes,
    place: tuple[str | tuple[str, ...], int],
    reach: Reach,
    blobs: BlobStore,
    node: Callable[[], Node],
) -> Reachability:
    """Listen for the identity of `seed` at a host, or several, and a port.

    Raises:
        SwarmError: if the port is taken or an address is not this machine's.
    """
    transport = Transport(seed, group=reach.group)
    transport.upload_bytes_per_second = reach.upload_bytes_per_second
    transport.store = blobs
    transport.may_fetch = lambda peer: node().may_fetch(peer)
    transport.is_member = lambda peer: node().is_member(peer)
    transport.services |= Prober(transport).services
    relay = None
    if reach.relay is not None:
        relay = Relay(transport.budget, reach.relay, transport.may_fetch)
        transport.services |= relay.services
    await transport.listen(*place, lambda connection: node().on_connection(connection))
    iroh = None
    if reach.iroh:
        bound = transport.listening[0] if transport.listening else ("0.0.0.0", 0)
        iroh = await Iroh.open(transport, seed, bound, reach.iroh_relay)
    return Reachability(
        transport,
        reach,
        connections=lambda: node().connections,
        relays_of=lambda peer: node().relays_of(peer),
        on_change=lambda addresses: node().announce(addresses),
        relay=relay,
        iroh=iroh,
    )


async def join_lan(node: Node, reachability: Reachability, genesis: Genesis) -> None:
    """Let a peer announce itself on the networks that it listens on, and meet others there.

    Raises:
        ConfigError: if the library is missing.
        SwarmError: if the network does not let it.
    """
    lan, machine = (
        Lan(tuple(host for host, _ in reachability.transport.listening)),
        node.peer.machine,
    )
    await lan.open()

    async def dial(other: LanPeer) -> bool:
        try:
            node.on_connection(await node.transport.dial(other.addresses, expect=other.peer))
        except DialError:
            return False
        return True

    def is_missing(peer: bytes) -> bool:
        return peer not in node.connections and peer not in machine.chain.members.banned

    mine = LanPeer(
        genesis.name.decode(errors="replace"),
        genesis.chain_id,
        machine.me,
        reachability.addresses(),
    )
    node.spawn(meet_on_lan(lan, mine, is_missing, dial))
