"""`peerformer node`: one peer, by hand, with an interactive console."""

import asyncio
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from peerformer.cluster.launch import Launch
from peerformer.cluster.one_peer import OnePeer, as_one_peer, threads_of
from peerformer.cluster.training import this_launch
from peerformer.config import DataConfig
from peerformer.errors import ConfigError
from peerformer.interface.console import Console
from peerformer.interface.options import ConfigOptions, resolve_options
from peerformer.node import founding
from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import SwarmDirectory
from peerformer.node.joining import fetch_swarm
from peerformer.node.keyring import load_or_create_key
from peerformer.node.process import Running, run_loop
from peerformer.node.worker import leave_operators_to_the_bench
from peerformer.train.start import settings_of_base

FIRST_PORT = 8_888


def node(
    *,
    port: Annotated[int, Parameter(help="Port to listen on.")] = FIRST_PORT,
    host: Annotated[
        str, Parameter(help="Address to listen on; 0.0.0.0 opens it to others.")
    ] = "127.0.0.1",
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
    options: ConfigOptions = ConfigOptions(),
) -> None:
    """Run one peer: found a swarm, or join one with --bootstrap; the console says `help`.

    Under torchrun or mpirun all ranks are one peer, and share its training.
    """
    if not 0 <= port <= 65_535:
        raise ConfigError("--port must be between 0 and 65535", why=f"given: {port}")
    swarm = SwarmDirectory(Path("runs") / (run or f"node-{port}"))
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
        place = PeerOptions(host, port, guest=guest, data=own_data)
        place = with_ranks(place, peer, launch)
        _run(swarm, place, sized, overrides, bootstrap=bootstrap, console=console)

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
    console: bool,
) -> None:
    leave_operators_to_the_bench()
    directory = swarm.peer("me").make()
    log = directory.log
    logging.basicConfig(filename=log, level=logging.INFO, force=True)
    key = load_or_create_key(directory.key)
    if not swarm.genesis_file.exists():
        if bootstrap:
            run_loop(fetch_swarm(swarm, key, bootstrap, note))
        else:
            config = resolve_options(sized, overrides, settings_of_base).config
            founding.found(swarm, config, [key], note)
            note(f"founded     a new swarm in {swarm.path}")
    elif bootstrap is None:
        note(f"resumed     {swarm.path}, as of {datetime.now(UTC):%H:%M}")
    known = [(bootstrap, None)] if bootstrap else []
    reason = run_loop(run_peer(swarm, peer_options, known, with_console=console))
    note(f"stopped     {reason}; the same command goes on")


def note(text: str) -> None:
    """Tell the operator what goes on."""
    print(text, file=sys.stderr)


async def run_peer(
    swarm: SwarmDirectory,
    options: PeerOptions,
    known: Sequence[tuple[str, bytes | None]],
    *,
    with_console: bool,
) -> str:
    """Run a peer until it is stopped; `known` are addresses, with their keys, to begin with."""
    running = Running(swarm, swarm.peer("me"), options)
    terminal = Console(running)
    running.on_event = terminal.on_event
    address = await running.start()
    note(f"listening   {address}   join with: peerformer node --port PORT --bootstrap {address}")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.leave)
    for place, key in known:
        running.node.spawn(running.bootstrap(place, key))
    if with_console:
        running.node.spawn(terminal.run())
    return await running.run_until_stopped()
