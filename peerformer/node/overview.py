"""A swarm on this machine at a glance: its peers' status files, joined, alive or dead."""

import os
import time
from pathlib import Path
from typing import Any

from peerformer.errors import ConfigError
from peerformer.node.directory import PeerDirectory, SwarmDirectory

STALE_SECONDS = 30.0  # a running peer writes its status whenever something changes


def is_running(status: dict[str, Any]) -> bool:
    """Tell whether the process that wrote a status is still there."""
    if str(status.get("state", "")).startswith("stopped"):
        return False
    try:
        os.kill(int(status["pid"]), 0)
    except (OSError, KeyError, ValueError):
        return False
    return True


def overview(swarm: SwarmDirectory) -> dict[str, Any]:
    """Return one object about the swarm: round, state root, quorum, and a row for each peer."""
    genesis = swarm.genesis()
    statuses = {_name_in(directory): directory.read_status() for directory in swarm.peers()}
    written = [status for status in statuses.values() if status]
    newest = max(written, key=lambda status: int(status["round"]), default=None)
    members = {row["name"]: row for row in newest["members"]} if newest else {}
    banned = {row["name"]: row for row in newest["banned"]} if newest else {}
    names = sorted({*statuses, *members})
    return {
        "name": swarm.path.name,
        "path": str(swarm.path),
        "chain_id": genesis.chain_id.hex(),
        "round": newest["round"] if newest else 0,
        "state_root": newest["state_root"] if newest else genesis.state_root.hex(),
        "quorum": newest["quorum"] if newest else 0,
        "tolerates": newest["tolerates"] if newest else 0,
        "running": sum(is_running(status) for status in written),
        "bits_per_byte": _validation(written),
        "bits_per_byte_by_source": _by_source(written),
        "peers": [
            _row(name, statuses.get(name), members.get(name), banned.get(name)) for name in names
        ],
        "time": time.time(),
    }


def _row(
    name: str,
    status: dict[str, Any] | None,
    member: dict[str, Any] | None,
    banned: dict[str, Any] | None,
) -> dict[str, Any]:
    here = status or {}
    state = "elsewhere" if status is None else here["state"]
    if status is not None and not is_running(here) and not state.startswith("stopped"):
        state = "down"
    if banned is not None:
        state = "evicted"
    known = member or banned or {}
    return {
        "name": name,
        "peer_id": known.get("peer_id") or here.get("peer_id"),
        "role": known.get("role", "none"),
        "round": here.get("round", 0),
        "state_root": here.get("state_root"),
        "state_round": here.get("state_round"),
        "state": state,
        "contributed": known.get("contributed", 0),
        "accepted": known.get("accepted", 0),
        "reputation": known.get("reputation"),
        "quarantined_until": known.get("quarantined_until", 0),
        "loss": here.get("loss"),
        "epsilon": here.get("epsilon"),
        "utilisation": here.get("utilisation"),
        "bytes_sent": here.get("bytes_sent", 0),
        "adversary": here.get("adversary"),
        "address": here.get("address"),
        "network": here.get("network"),
        "paused_by": here.get("paused_by", []),
        "hours": here.get("hours"),
        "disk_bytes": here.get("disk_bytes", 0),
    }


def _validation(statuses: list[dict[str, Any]]) -> dict[str, float]:
    """Return bits per byte by round, as those peers measured it that do."""
    found: dict[str, float] = {}
    for status in statuses:
        found.update(status.get("bits_per_byte") or {})
    return dict(sorted(found.items(), key=lambda pair: int(pair[0])))


def _by_source(statuses: list[dict[str, Any]]) -> dict[str, float]:
    """Return bits per byte of each source, as the peer that is furthest measured it."""
    measured = [status for status in statuses if status.get("bits_per_byte_by_source")]
    newest = max(measured, key=lambda status: int(status["round"]), default=None)
    return dict(newest["bits_per_byte_by_source"]) if newest else {}


def chosen_peer(swarm: SwarmDirectory, name: str | None) -> PeerDirectory:
    """Return the peer of a name, or (None) the one that decided the most rounds without lying.

    Raises:
        ConfigError: if there is none; names those that there are.
    """
    directories = {directory.name: directory for directory in swarm.peers()}
    directories |= {_name_in(directory): directory for directory in swarm.peers()}
    if not directories:
        raise ConfigError("no peer of this swarm has run here", where=str(swarm.path))
    if name is not None:
        if name not in directories:
            known = ", ".join(sorted(directories))
            raise ConfigError(f"there is no peer called {name} here", why=f"known: {known}")
        return directories[name]
    rows = [(directory, directory.read_status() or {}) for directory in directories.values()]
    honest = [row for row in rows if not row[1].get("adversary")] or rows
    return max(honest, key=lambda row: (_round_in(row[1]), _size(row[0].journal)))[0]


def _name_in(directory: PeerDirectory) -> str:
    """Return the name that others know a peer by; that of its directory until it has run."""
    return str((directory.read_status() or {}).get("name") or directory.name)


def _round_in(status: dict[str, Any]) -> int:
    number = status.get("round", 0)
    return number if isinstance(number, int) else 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
