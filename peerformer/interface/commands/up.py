"""`peerformer up`: a whole swarm on this machine, each peer a process of its own."""

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from peerformer.config import Config
from peerformer.errors import ConfigError, Interrupted, PeerformerError, SwarmError
from peerformer.interface.options import ConfigOptions, resolve_options
from peerformer.interface.swarm_view import SwarmView
from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import SwarmDirectory, find_swarm
from peerformer.node.founding import new_directory, run_name
from peerformer.node.overview import overview
from peerformer.node.supervisor import Supervisor
from peerformer.protocol.membership import tolerated_faults
from peerformer.settings import DEFAULT, Resolved
from peerformer.train.start import settings_of_base

LOOK_SECONDS = 0.5
VALIDATORS = 2  # so many of the peers measure bits per byte; each round costs them a moment


def up(
    *,
    peers: Annotated[
        int | None, Parameter(help="Voters at the founding: 7 withstand 2 liars.")
    ] = None,
    run: Annotated[str | None, Parameter(help="Name; that of an earlier swarm resumes it.")] = None,
    data: Annotated[Path | None, Parameter(help="File or folder of text.")] = None,
    rounds: Annotated[
        int | None, Parameter(help="Stop after so many rounds; without it, at Ctrl-C.")
    ] = None,
    seed: Annotated[int | None, Parameter(help="Seed of initial weights and data order.")] = None,
    base: Annotated[
        str | None,
        Parameter(name="--from", help="Run, checkpoint or Hugging Face directory to start from."),
    ] = None,
    json_output: Annotated[
        bool, Parameter(name="--json", negative=(), help="End with one JSON object.")
    ] = False,
    options: ConfigOptions = ConfigOptions(),
) -> None:
    """Start a whole swarm on this machine; Ctrl-C stops it, the same command resumes it."""
    overrides = {
        "size": options.size or (None if base else "nano"),
        "swarm.peers": peers,
        "data.path": str(data) if data else None,
        "training.seed": seed,
        "training.base": base,
    }
    if rounds is not None and rounds < 1:
        raise ConfigError("--rounds must be at least 1", why=f"given: {rounds}")
    interrupted = False
    with SwarmView() as view:
        supervisor = open_swarm(run, options, overrides, view.note)
        try:
            start_all(supervisor, view.note)
            serve_orders(supervisor)
            _watch(supervisor.swarm, view, rounds)
        except KeyboardInterrupt:
            interrupted = True
            view.note("Stopping … (Ctrl-C again: at once)")
        finally:
            final = finish(supervisor, view)
    if json_output:
        print(json.dumps(final))
    if interrupted:
        raise Interrupted(
            f"stopped after round {final['round']}, saved",
            hint=f"peerformer up --run {supervisor.swarm.path.name}   resumes",
        )


def open_swarm(
    run: str | None,
    options: ConfigOptions,
    overrides: dict[str, Any],
    note: Callable[[str], None],
    root: Path = Path("runs"),
) -> Supervisor:
    """Found a swarm, or take up the one of this name."""
    if run is not None:
        try:
            supervisor = Supervisor(find_swarm(run, root))
        except SwarmError:
            pass
        else:
            note(f"swarm       {supervisor.swarm.path}   resumed")
            return supervisor
    chosen = {name: value for name, value in overrides.items() if name != "size"}
    sized = replace(options, size=overrides["size"])
    config = lab_config(resolve_options(sized, chosen, settings_of_base))
    name = run_name(f"{datetime.now(UTC):%Y-%m-%d}", run, str(time.time_ns()).encode())
    supervisor = Supervisor(new_directory(name, root))
    supervisor.found(config, note)
    note(f"swarm       {supervisor.swarm.path}   Ctrl-C stops; up --run {name} resumes")
    return supervisor


def lab_config(resolved: Resolved) -> Config:
    """A swarm on one machine has nobody to defend against: lift the quota that is not asked for."""
    config = resolved.config
    if resolved.origins["swarm.joins_per_voucher"] != DEFAULT:
        return config
    return replace(config, swarm=replace(config.swarm, joins_per_voucher=0))


def start_all(
    supervisor: Supervisor,
    note: Callable[[str], None],
    attacks: dict[str, str] | None = None,
) -> None:
    """Start all peers that have a directory here and were not evicted."""
    now = overview(supervisor.swarm)
    evicted = {row["name"] for row in now["peers"] if row["state"] == "evicted"}
    names = [peer.name for peer in supervisor.swarm.peers() if peer.name not in evicted]
    founders = len(supervisor.swarm.genesis().founders)
    faults = tolerated_faults(founders)
    tolerance = (
        f"tolerates {faults} Byzantine peers ({founders} = 3·{faults} + {founders - 3 * faults})"
        if faults
        else f"{founders} peers tolerate no Byzantine one: that takes at least 4"
    )
    note(f"peers       starting {len(names)} on this machine; {tolerance}")
    children = []
    validators = 0
    for name in names:
        attack = (attacks or {}).get(name)
        validates = attack is None and validators < VALIDATORS
        validators += validates
        children.append(
            supervisor.start(name, PeerOptions(threads=1, attack=attack, validates=validates))
        )
    supervisor.await_listening(children)


def serve_orders(supervisor: Supervisor) -> None:
    """Answer `peerformer peer …` of other terminals."""
    lock = threading.Lock()

    def handle(message: dict[str, Any]) -> dict[str, Any]:
        with lock:
            match message:
                case {"do": "kill", "name": name}:
                    supervisor.kill(name)
                case {"do": "start", "name": name}:
                    if name not in supervisor.children:
                        raise ConfigError(f"no peer is called {name}", hint="peerformer status")
                    supervisor.await_listening([supervisor.start(name)])
                case {"do": "pause" | "resume" as word, "name": name}:
                    supervisor.order(name, word)
                case {"do": "add", "adversary": attack}:
                    return {"name": supervisor.add(attack)}
                case {"do": "state", "name": name}:
                    return {"path": str(supervisor.print_state(name))}
                case _:
                    raise ConfigError("no such order")
            return {"done": True}

    supervisor.listen(handle)


def _watch(swarm: SwarmDirectory, view: SwarmView, rounds: int | None) -> None:
    while True:
        now = overview(swarm)
        view.show(now)
        if rounds is not None and now["round"] >= rounds:
            return
        if not now["running"] and now["round"]:
            raise SwarmError(
                "no peer runs any more", where=str(swarm.path), hint="read the peers' logs"
            )
        time.sleep(LOOK_SECONDS)


def finish(supervisor: Supervisor, view: SwarmView) -> dict[str, Any]:
    """Save a checkpoint, stop everything, and say how to go on."""
    final = overview(supervisor.swarm)
    checkpoint = None
    honest = [
        name
        for name, child in supervisor.children.items()
        if child.alive and child.address and not child.options.attack
    ]
    try:
        if honest and sys.exc_info()[0] is None:
            checkpoint = supervisor.save_checkpoint(honest[0])
    except PeerformerError as error:
        view.note(str(error))
    finally:
        supervisor.stop()
    if checkpoint is not None:
        view.note(f"saved       {checkpoint}")
    return {**final, "checkpoint": str(checkpoint) if checkpoint else None}
