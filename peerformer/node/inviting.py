"""What a peer's invitation says, from what lies on this machine's disk: the peer may be stopped."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peerformer.errors import ConfigError, SwarmError
from peerformer.node.directory import PeerDirectory, SwarmDirectory
from peerformer.node.kept_tickets import TICKETS_MAX, keep_tickets
from peerformer.node.keyring import load_key
from peerformer.node.stored import stored_headers
from peerformer.protocol.checkpoint import Checkpoint
from peerformer.protocol.codec import MalformedError, decode
from peerformer.protocol.genesis import ADMISSION_CLOSED, ADMISSION_INVITE, Genesis
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.membership import ROLE_WORDS, VOTER
from peerformer.protocol.messages import ADDRESS_SIZE_MAX, Certified
from peerformer.protocol.ticket import (
    DAY_SECONDS,
    PLACES_MAX,
    Invitation,
    Place,
    Ticket,
    sign_ticket,
)

PLACES_OF_INVITER = 2  # of those in a ticket; the rest are for other peers
WILDCARDS = ("0.0.0.0", "[::]", "::")


@dataclass(frozen=True, slots=True)
class Terms:
    """How long an invitation is good, and for how many newcomers; None: as the swarm has it."""

    seconds: float
    uses: int | None = None


def invitation_of(
    swarm: SwarmDirectory,
    directory: PeerDirectory,
    keys: KeyPair,
    addresses: tuple[str, ...],
    now: float,
    terms: Terms,
) -> Invitation:
    """Return the invitation of a peer to the newest round in its store.

    Args:
        swarm: the other peers of it on this machine are named too.
        directory: the inviter's files.
        keys: its keys.
        addresses: where it is reached; without any, where others reached it, or as it says itself.
        now: seconds since 1970.
        terms: how long the invitation is good, and for how many.

    Raises:
        SwarmError: if it has decided no round, or nobody's address is known.
        ConfigError: if an address is too long, or the swarm does not admit on these terms.
        DataError: if its store cannot be read.
    """
    uses = _uses(swarm.genesis(), directory, terms.uses)
    stored = stored_headers(directory)
    if not stored.records:
        raise SwarmError(
            "this peer has decided no round that an invitation could name",
            where=str(directory.path),
            hint=f"start it, and let it decide one: peerformer node --run {swarm.path.name}",
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
        expires=int(now + terms.seconds),
        places=_places(swarm, directory, keys, addresses),
        uses=uses,
        serial=secrets.randbits(64),
    )


def _uses(genesis: Genesis, directory: PeerDirectory, uses: int | None) -> int:
    """Return how many a ticket admits, by what a peer last said of itself; see `uses_of`."""
    status = directory.read_status() or {}
    me, members = status.get("peer_id"), status.get("members") or []
    roles = {row.get("peer_id"): row.get("role") for row in members if isinstance(row, dict)}
    return uses_of(genesis, uses, votes=not roles or roles.get(me) == ROLE_WORDS[VOTER])


def uses_of(genesis: Genesis, uses: int | None, *, votes: bool) -> int:
    """Return how many a ticket admits, 0 for anybody; `votes` is whether its inviter does.

    Raises:
        ConfigError: if the swarm cannot hold to that.
    """
    admission = genesis.limits.admission
    if admission == ADMISSION_CLOSED:
        raise ConfigError(
            "nobody can join this swarm",
            where="swarm.admission",
            why="it was founded closed: its founders are all its members",
            hint="found another one: peerformer init NAME --admission invite",
        )
    if admission != ADMISSION_INVITE:
        if uses is not None:
            raise ConfigError(
                "nobody counts who comes into this swarm",
                where="--uses",
                why="it was founded open: its voters let anybody in, with a ticket or without",
                hint="leave --uses out, or found another: peerformer init NAME --admission invite",
            )
        return 0
    if not votes:
        raise ConfigError(
            "this peer has no vote: it can let nobody in",
            hint="let a voter invite: peerformer invite --peer NAME",
        )
    return 1 if uses is None else uses


def _told(status: Mapping[str, Any]) -> list[str]:
    """Return where a peer is reached, best first: as others found, as it announces, as it listens.

    Nobody outside reaches 127.0.0.1, so that comes last, and never beside another one.
    """
    named = [*(status.get("reached_at") or ()), *(status.get("addresses") or ())]
    named.append(status.get("address"))
    texts = list(dict.fromkeys(text for text in named if isinstance(text, str)))
    usable = [text for text in texts if text.rpartition(":")[0] not in WILDCARDS]
    return [text for text in usable if not is_loopback(text)] or usable


def is_loopback(address: str) -> bool:
    """Tell whether an address means only the machine that it is read on."""
    host = address.rpartition(":")[0].strip("[]")
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _places(
    swarm: SwarmDirectory, directory: PeerDirectory, keys: KeyPair, addresses: tuple[str, ...]
) -> tuple[Place, ...]:
    found = [(keys.peer_id, address) for address in addresses]
    others = [peer for peer in swarm.peers() if peer.path != directory.path]
    for peer in (directory, *others):
        status = peer.read_status() or {}
        peer_id = status.get("peer_id")
        mine = peer is directory
        if isinstance(peer_id, str) and not (mine and addresses) and not status.get("adversary"):
            told = _told(status)[: PLACES_OF_INVITER if mine else 1]
            found += [(bytes.fromhex(peer_id), address) for address in told]
    if not found:
        raise SwarmError(
            "no address of this swarm is known here", hint="--address HOST:PORT of the inviter"
        )
    for _, address in found:
        if len(address.encode()) > ADDRESS_SIZE_MAX:
            raise ConfigError("an address is too long", why=address[:ADDRESS_SIZE_MAX])
    return tuple(Place(peer, address.encode()) for peer, address in found[:PLACES_MAX])


def invite_here(swarm: SwarmDirectory, newcomer: PeerDirectory) -> None:
    """Let a new peer of this machine in, where a voter's invitation is needed, by one of a founder.

    It is not on its way to anybody: the newcomer has the swarm's files already, so that the ticket
    names no round and no place.
    """
    genesis = swarm.genesis()
    if genesis.limits.admission != ADMISSION_INVITE:
        return
    founders, tickets = {founder.peer for founder in genesis.founders}, list[Ticket]()
    nowhere, now = Checkpoint(0, genesis.chain_id, bytes(32)), int(time.time())
    for peer in swarm.peers():
        keys = KeyPair.from_seed(load_key(peer.key)) if peer.key.is_file() else None
        if keys is not None and keys.peer_id in founders:
            invitation = Invitation(
                genesis.chain_id, nowhere, now, now + DAY_SECONDS, (), 1, secrets.randbits(64)
            )
            tickets.append(sign_ticket(keys, invitation))
    if len(tickets) < genesis.limits.vouchers:
        raise ConfigError(
            "nobody on this machine can let a newcomer in: the founders' keys are elsewhere",
            where=str(swarm.path),
            hint="peerformer join TICKET, with a ticket of a voter: peerformer invite",
        )
    keep_tickets(newcomer, tickets[:TICKETS_MAX])
