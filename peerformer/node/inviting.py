"""What a peer's invitation says, from what lies on this machine's disk: the peer may be stopped."""

from peerformer.errors import ConfigError, SwarmError
from peerformer.node.directory import PeerDirectory, SwarmDirectory
from peerformer.node.stored import stored_headers
from peerformer.protocol.checkpoint import Checkpoint
from peerformer.protocol.codec import MalformedError, decode
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.messages import ADDRESS_SIZE_MAX, Certified
from peerformer.protocol.ticket import DAY_SECONDS, PLACES_MAX, Invitation, Place


def invitation_of(
    swarm: SwarmDirectory,
    directory: PeerDirectory,
    keys: KeyPair,
    addresses: tuple[str, ...],
    days: int,
    now: float,
) -> Invitation:
    """Return the invitation of a peer to the newest round in its store.

    Args:
        swarm: the other peers of it on this machine are named too.
        directory: the inviter's files.
        keys: its keys.
        addresses: where it is reached; without any, as it last said itself.
        days: how long the invitation is good for.
        now: seconds since 1970.

    Raises:
        SwarmError: if it has decided no round, or nobody's address is known.
        ConfigError: if an address is too long.
        DataError: if its store cannot be read.
    """
    stored = stored_headers(directory)
    if not stored.records:
        raise SwarmError(
            "this peer has decided no round that an invitation could name",
            where=str(directory.path),
            hint="let the swarm decide a round first: peerformer status",
        )
    try:
        header = decode(Certified, stored.records[-1][1]).header
    except MalformedError as error:
        raise SwarmError(
            "the newest round in this peer's store is damaged",
            where=str(directory.path),
            why=str(error),
        ) from error
    return Invitation(
        stored.chain_id,
        Checkpoint(header.round, header.digest, header.next_members_hash),
        issued=int(now),
        expires=int(now) + days * DAY_SECONDS,
        places=_places(swarm, directory, keys, addresses),
    )


def _places(
    swarm: SwarmDirectory, directory: PeerDirectory, keys: KeyPair, addresses: tuple[str, ...]
) -> tuple[Place, ...]:
    found = [(keys.peer_id, address) for address in addresses]
    others = [peer for peer in swarm.peers() if peer.path != directory.path]
    for peer in (directory, *others):
        status = peer.read_status() or {}
        told, peer_id = status.get("address"), status.get("peer_id")
        mine = peer is directory and addresses
        if isinstance(told, str) and isinstance(peer_id, str) and not mine:
            if not status.get("adversary"):
                found.append((bytes.fromhex(peer_id), told))
    if not found:
        raise SwarmError(
            "no address of this swarm is known here", hint="--address HOST:PORT of the inviter"
        )
    for _, address in found:
        if len(address.encode()) > ADDRESS_SIZE_MAX:
            raise ConfigError("an address is too long", why=address[:ADDRESS_SIZE_MAX])
    return tuple(Place(peer, address.encode()) for peer, address in found[:PLACES_MAX])
