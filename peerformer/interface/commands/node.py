"""`peerformer node`: one peer, by hand, with an interactive console."""

import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from peerformer.cluster.launch import Launch
from peerformer.cluster.one_peer import OnePeer, as_one_peer, threads_of
from peerformer.cluster.training import this_launch
from peerformer.config import DataConfig
from peerformer.errors import ConfigError
from peerformer.interface.console import Console
from peerformer.interface.network_options import NetworkOptions
from peerformer.interface.options import ConfigOptions, resolve_options
from peerformer.interface.passphrase import PassphraseFile, seed_of
from peerformer.interface.running_options import RunningOptions
from peerformer.node import founding, service
from peerformer.node.assemble import PeerOptions
from peerformer.node.authority import check_fits
from peerformer.node.directory import SwarmDirectory
from peerformer.node.joining import check_key, check_text, fetch_swarm, port_is_free
from peerformer.node.keyring import KnownPeers
from peerformer.node.logs import log_to
from peerformer.node.process import Running, run_loop
from peerformer.node.worker import leave_operators_to_the_bench
from peerformer.protocol.genesis import ADMISSION_INVITE
from peerformer.train.start import settings_of_base


def node(
    *,
    bootstrap: Annotated[
        str | None, Parameter(help="host:port of any peer of a swarm to join.")
    ] = None,
    data: Annotated[
        Path | None, Parameter(help="This peer's own text; it never leaves this machine.")
    ] = None,
    guest: Annotated[
        bool, Parameter(negative=(), help="Join to contribute without a vote; not for a founder.")
    ] = False,
    run: Annotated[str | None, Parameter(help="Where to keep the files, under runs/.")] = None,
    seed: Annotated[int | None, Parameter(help="Seed of a new swarm's initial weights.")] = None,
    base: Annotated[
        str | None, Parameter(name="--from", help="Model whose weights a new swarm starts from.")
    ] = None,
    console: Annotated[bool, Parameter(help="Read commands from the terminal.")] = True,
    network: NetworkOptions = NetworkOptions(),
    daily: RunningOptions = RunningOptions(),
    options: ConfigOptions = ConfigOptions(),
    passphrase_file: PassphraseFile = None,
) -> None:
    """Run one peer: found a swarm, or join one with --bootstrap; the console says `help`.

    Under torchrun or mpirun all ranks are one peer, and share its training.
    """
    placed = network.of_peer()
    swarm = SwarmDirectory(Path("runs") / daily.run_name(run, network.port))
    if guest and not bootstrap and not swarm.genesis_file.exists():
        raise ConfigError("a guest founds no swarm", hint="--bootstrap HOST:PORT joins one")
    own_data = DataConfig(path=str(data)) if data else None
    overrides = {
        "swarm.peers": 1,
        "data.path": str(data) if data else None,
        "training.seed": seed,
        "training.base": base,
    }
    if base and bootstrap:
        raise ConfigError("--from is for a founder: a swarm has its weights", hint="leave it out")
    sized = replace(options, size=options.size or (None if base else "nano"))
    launch = this_launch()

    def run_as(peer: OnePeer | None) -> None:
        place = daily.applied_to(PeerOptions(**placed, guest=guest, data=own_data))
        place = replace(place, seed=seed_of(swarm.peer("me").key, passphrase_file))
        place = with_ranks(place, peer, launch)
        label = (daily.node_id or "peerformer") if console else None
        _run(swarm, place, sized, overrides, bootstrap=bootstrap, label=label)

    as_one_peer(launch, lambda: resolve_options(sized, overrides, settings_of_base).config, run_as)


def with_ranks(options: PeerOptions, peer: OnePeer | None, launch: Launch) -> PeerOptions:
    """The options of a peer whose steps other ranks share, if there are some."""
    if peer is None:
        return options
    note(f"ranks       {launch.in_words()}, as one peer")
    return replace(options, attach=peer.attach_to, threads=threads_of(launch))


def _run(
    swarm: SwarmDirectory,
    peer_options: PeerOptions,
    sized: ConfigOptions,
    overrides: Mapping[str, object],
    *,
    bootstrap: str | None,
    label: str | None,
) -> None:
    leave_operators_to_the_bench()
    key = peer_options.seed
    assert key is not None
    if peer_options.data is not None:
        check_text(peer_options.data)
    run_loop(port_is_free(key, peer_options.host, peer_options.port))
    directory = swarm.peer("me").make()
    log_to(directory.log)
    check_fits(key, peer_options.reach.group)
    if not swarm.genesis_file.exists():
        if bootstrap:
            run_loop(fetch_swarm(swarm, key, bootstrap, note, group=peer_options.reach.group))
        else:
            config = resolve_options(sized, overrides, settings_of_base).config
            founding.found(swarm, config, [key], note)
            note(f"founded     a new swarm in {swarm.path}")
    elif bootstrap is None:
        note(f"resumed     {swarm.path}, as of {datetime.now(UTC):%H:%M}")
    known = [(bootstrap, None)] if bootstrap else []
    reason = run_loop(run_peer(swarm, peer_options, known, label=label))
    note(f"stopped     {reason}; the same command goes on")


def note(text: str) -> None:
    """Tell the operator what goes on."""
    print(text, file=sys.stderr)


def _trust(address: str, peer: bytes) -> None:
    """Its key was known before it was dialled."""


def _where(swarm: SwarmDirectory, address: str) -> str:
    """Say where a peer listens, and how another joins it there."""
    if not address:
        return (
            "listening   nowhere that others can dial; relays are looked for among its neighbours"
        )
    how = f"peerformer node --port PORT --bootstrap {address}"
    if swarm.genesis().limits.admission == ADMISSION_INVITE:
        how = f"a ticket: peerformer invite {swarm.path.name}"
    return f"listening   {address}   join with: {how}"


async def run_peer(
    swarm: SwarmDirectory,
    options: PeerOptions,
    known: Sequence[tuple[str, bytes | None]],
    *,
    label: str | None,
) -> str:
    """Run a peer until it is stopped.

    `known` are addresses, with their keys, to begin with; `label` is the prompt of its console,
    None for a peer without one.
    """
    running = Running(swarm, swarm.peer("me"), options)
    terminal = Console(running, label or "")
    running.on_event = terminal.on_event
    address = await running.start()
    note(_where(swarm, address))
    service.notify(READY=1, STATUS=f"listening on {address}" if address else "dialling out only")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.stop)
    keys = KnownPeers(swarm.path.parent / "known-peers")
    for place, key in known:
        learn = partial(check_key, keys, note=note) if key is None else _trust
        running.node.spawn(running.bootstrap(place, key, learn))
    if label is not None:
        running.node.spawn(terminal.run())
    try:
        return await running.run_until_stopped()
    finally:
        service.notify(STOPPING=1)
