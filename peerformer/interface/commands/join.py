"""`peerformer join`: one peer, by the ticket of an invitation."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from peerformer.cluster.one_peer import OnePeer, as_one_peer
from peerformer.cluster.training import this_launch
from peerformer.config import DataConfig
from peerformer.errors import ConfigError
from peerformer.interface.commands.node import note, run_peer, with_ranks
from peerformer.interface.network_options import NetworkOptions
from peerformer.interface.options import ConfigOptions, resolve_options
from peerformer.interface.passphrase import PassphraseFile, seed_of
from peerformer.interface.running_options import RunningOptions
from peerformer.journal import Journal
from peerformer.node.anchor import anchor
from peerformer.node.assemble import PeerOptions, wall_clock
from peerformer.node.authority import check_fits
from peerformer.node.certificate import Group
from peerformer.node.directory import PeerDirectory, SwarmDirectory
from peerformer.node.joining import check_text, fetch_invited, port_is_free
from peerformer.node.kept_tickets import TICKETS_MAX
from peerformer.node.logs import log_to
from peerformer.node.process import run_loop
from peerformer.node.standing import CLOCK_CURE
from peerformer.node.worker import leave_operators_to_the_bench
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.identity import name_of
from peerformer.protocol.ticket import OutOfTimeError, Ticket, read_ticket


def join(
    *tickets: Annotated[
        str,
        Parameter(help="The line that `peerformer invite` printed; more where it takes more."),
    ],
    data: Annotated[
        Path | None, Parameter(help="This peer's own text; it never leaves this machine.")
    ] = None,
    guest: Annotated[bool, Parameter(negative=(), help="Contribute without a vote.")] = False,
    run: Annotated[str | None, Parameter(help="Where to keep the files, under runs/.")] = None,
    console: Annotated[bool, Parameter(help="Read commands from the terminal.")] = True,
    network: NetworkOptions = NetworkOptions(),
    daily: RunningOptions = RunningOptions(),
    passphrase_file: PassphraseFile = None,
) -> None:
    """Join a swarm by a ticket; headers are checked up to the round that it names, not from 1."""
    placed, port = network.of_peer(), network.port
    given = read_tickets(tickets)
    swarm = SwarmDirectory(Path("runs") / daily.run_name(run, port))
    if swarm.genesis_file.exists() and swarm.genesis().chain_id != given[0].invitation.chain_id:
        raise ConfigError(
            "the ticket is for another swarm than the one in this run",
            where=str(swarm.path),
            hint="--run NEW-NAME keeps the new one apart",
        )
    launch = this_launch()

    def run_as(peer: OnePeer | None) -> None:
        own_data = DataConfig(path=str(data)) if data else None
        options = daily.applied_to(PeerOptions(**placed, guest=guest, data=own_data))
        options = replace(options, seed=seed_of(swarm.peer("me").key, passphrase_file))
        label = (daily.node_id or "peerformer") if console else None
        reason = _run(swarm, with_ranks(options, peer, launch), given, label=label)
        again = f"peerformer node --port {port} --run {swarm.path.name}"
        note(f"stopped     {reason}; go on with: {again}")

    as_one_peer(launch, lambda: resolve_options(ConfigOptions()).config, run_as)


def read_tickets(lines: tuple[str, ...]) -> list[Ticket]:
    """Return the tickets in these lines, all of one swarm.

    Raises:
        ConfigError: if one cannot be used.
    """
    if not 1 <= len(lines) <= TICKETS_MAX:
        raise ConfigError(
            f"a ticket is needed, or up to {TICKETS_MAX}",
            hint="ask a member of the swarm for one: peerformer invite",
        )
    given: list[Ticket] = []
    for line in lines:
        try:
            given.append(read_ticket(line, time.time()))
        except OutOfTimeError as error:
            here = f"{wall_clock():%Y-%m-%d %H:%M} UTC by this machine's clock"
            raise ConfigError(
                str(error),
                where="the ticket",
                why=f"it is {here}",
                hint=f"ask for a new one: peerformer invite; if that time is wrong, {CLOCK_CURE}",
            ) from error
        except MalformedError as error:
            raise ConfigError(
                str(error), where="the ticket", hint="ask for a new one: peerformer invite"
            ) from error
    if len({ticket.invitation.chain_id for ticket in given}) > 1:
        raise ConfigError(
            "these tickets are for different swarms", where="the tickets", hint="join one at a time"
        )
    return given


def _run(
    swarm: SwarmDirectory, options: PeerOptions, given: list[Ticket], *, label: str | None
) -> str:
    """Join and run until stopped; returns why."""
    leave_operators_to_the_bench()
    assert options.seed is not None
    if options.data is not None:
        check_text(options.data)
    run_loop(port_is_free(options.seed, options.host, options.port))
    directory = swarm.peer("me").make()
    log_to(directory.log)
    for ticket in given:
        number = ticket.invitation.checkpoint.round
        note(f"invited     by {name_of(ticket.inviter)}, to round {number}")
    group, seed = options.reach.group, options.seed
    check_fits(seed, group)
    run_loop(fetch_invited(swarm, directory, seed, given, note, group))
    run_loop(_anchored(swarm, directory, given[0], seed, group))
    places = given[0].invitation.places
    known = [(place.address.decode(), place.peer) for place in places]
    return run_loop(run_peer(swarm, options, known, label=label))


async def _anchored(
    swarm: SwarmDirectory,
    directory: PeerDirectory,
    ticket: Ticket,
    seed: bytes,
    group: Group | None,
) -> None:
    with Journal(directory.journal, wall_clock) as journal:
        await anchor(directory, swarm.genesis(), ticket.invitation, note, journal, group, seed)
