"""`peerformer join`: one peer, by the ticket of an invitation."""

import logging
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from peerformer.cluster.one_peer import OnePeer, as_one_peer
from peerformer.cluster.training import this_launch
from peerformer.config import DataConfig
from peerformer.errors import ConfigError, SwarmError
from peerformer.interface.commands.node import FIRST_PORT, note, run_peer, with_ranks
from peerformer.interface.options import ConfigOptions, resolve_options
from peerformer.journal import Journal
from peerformer.node.anchor import anchor
from peerformer.node.assemble import PeerOptions, wall_clock
from peerformer.node.directory import PeerDirectory, SwarmDirectory
from peerformer.node.joining import fetch_swarm
from peerformer.node.keyring import load_or_create_key
from peerformer.node.process import run_loop
from peerformer.node.worker import leave_operators_to_the_bench
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.identity import name_of
from peerformer.protocol.ticket import Invitation, Ticket, read_ticket


def join(
    ticket: Annotated[str, Parameter(help="The line that `peerformer invite` printed.")],
    /,
    *,
    port: Annotated[int, Parameter(help="Port to listen on.")] = FIRST_PORT,
    host: Annotated[
        str, Parameter(help="Address to listen on; 0.0.0.0 opens it to others.")
    ] = "127.0.0.1",
    data: Annotated[
        Path | None, Parameter(help="This peer's own text; it never leaves this machine.")
    ] = None,
    guest: Annotated[bool, Parameter(negative=(), help="Contribute without a vote.")] = False,
    run: Annotated[str | None, Parameter(help="Where to keep the files, under runs/.")] = None,
    console: Annotated[bool, Parameter(help="Read commands from the terminal.")] = True,
) -> None:
    """Join a swarm by a ticket; headers are checked up to the round that it names, not from 1."""
    if not 0 <= port <= 65_535:
        raise ConfigError("--port must be between 0 and 65535", why=f"given: {port}")
    try:
        given = read_ticket(ticket, time.time())
    except MalformedError as error:
        raise ConfigError(
            str(error), where="the ticket", hint="ask for a new one: peerformer invite"
        ) from error
    invitation = given.invitation
    swarm = SwarmDirectory(Path("runs") / (run or f"node-{port}"))
    if swarm.genesis_file.exists() and swarm.genesis().chain_id != invitation.chain_id:
        raise ConfigError(
            "the ticket is for another swarm than the one in this run",
            where=str(swarm.path),
            hint="--run NEW-NAME keeps the new one apart",
        )
    launch = this_launch()

    def run_as(peer: OnePeer | None) -> None:
        own_data = DataConfig(path=str(data)) if data else None
        options = PeerOptions(host, port, guest=guest, data=own_data)
        reason = _run(swarm, with_ranks(options, peer, launch), given, console=console)
        again = f"peerformer node --port {port}" + (f" --run {run}" if run else "")
        note(f"stopped     {reason}; go on with: {again}")

    as_one_peer(launch, lambda: resolve_options(ConfigOptions()).config, run_as)


def _run(swarm: SwarmDirectory, options: PeerOptions, given: Ticket, *, console: bool) -> str:
    """Join and run until stopped; returns why."""
    invitation = given.invitation
    leave_operators_to_the_bench()
    directory = swarm.peer("me").make()
    logging.basicConfig(filename=directory.log, level=logging.INFO, force=True)
    note(f"invited     by {name_of(given.inviter)}, to round {invitation.checkpoint.round}")
    _fetch(swarm, load_or_create_key(directory.key), invitation)
    run_loop(_anchored(swarm, directory, invitation))
    known = [(place.address.decode(), place.peer) for place in invitation.places]
    return run_loop(run_peer(swarm, options, known, with_console=console))


async def _anchored(
    swarm: SwarmDirectory, directory: PeerDirectory, invitation: Invitation
) -> None:
    with Journal(directory.journal, wall_clock) as journal:
        await anchor(directory, swarm.genesis(), invitation, note, journal)


def _fetch(swarm: SwarmDirectory, key: bytes, invitation: Invitation) -> None:
    """Fetch the genesis and its files from the first place that gives them, unless they are here.

    Raises:
        SwarmError: if none does.
    """
    failures: list[SwarmError] = []
    for place in invitation.places:
        if swarm.genesis_file.exists():
            return
        address = place.address.decode()
        pinned = (place.peer, invitation.chain_id)
        try:
            run_loop(fetch_swarm(swarm, key, address, note, pinned))
        except SwarmError as error:
            failures.append(error)
    if failures and not swarm.genesis_file.exists():
        raise failures[0]
