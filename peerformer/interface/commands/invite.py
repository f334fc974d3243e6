"""`peerformer invite`: a ticket for a newcomer, from a peer of a swarm on this machine."""

import time
from typing import Annotated

from cyclopts import Parameter

from peerformer.errors import ConfigError, SwarmError
from peerformer.node.directory import find_swarm
from peerformer.node.inviting import invitation_of
from peerformer.node.keyring import load_or_create_key
from peerformer.node.overview import chosen_peer
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.ticket import write_ticket

DAYS_MAX = 60


def invite(
    run: Annotated[
        str | None, Parameter(help="Name or path; without it, the swarm used last.")
    ] = None,
    *,
    peer: Annotated[
        str | None, Parameter(help="Who invites; without it, the peer with most rounds.")
    ] = None,
    address: Annotated[
        tuple[str, ...],
        Parameter(negative=(), help="host:port where the inviter is reached from outside."),
    ] = (),
    days: Annotated[int, Parameter(help="How long the ticket is good for.")] = 14,
) -> None:
    """Print a ticket for a newcomer: one line to hand on. It names the newest decided round."""
    if not 1 <= days <= DAYS_MAX:
        raise ConfigError(f"--days must be between 1 and {DAYS_MAX}", why=f"given: {days}")
    swarm = find_swarm(run)
    directory = chosen_peer(swarm, peer)
    if not directory.key.is_file():
        raise SwarmError("this peer has no key yet", where=str(directory.path))
    keys = KeyPair.from_seed(load_or_create_key(directory.key))
    print(write_ticket(keys, invitation_of(swarm, directory, keys, address, days, time.time())))
