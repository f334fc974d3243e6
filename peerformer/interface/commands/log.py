"""`peerformer log`: what happened, from the journals."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from peerformer import events
from peerformer.errors import ConfigError, PeerformerError
from peerformer.events import read_journal
from peerformer.node.directory import SwarmDirectory, find_swarm
from peerformer.node.evidence import evidence_file

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_HASH_SHOWN = 12


def log(
    run: Annotated[
        str | None, Parameter(help="Name or path; without it, the swarm used last.")
    ] = None,
    *,
    peer: Annotated[
        str | None, Parameter(help="Read this peer's journal; else one that is whole.")
    ] = None,
    about: Annotated[str | None, Parameter(help="Only what concerns this peer.")] = None,
    round_number: Annotated[int | None, Parameter(name="--round", help="Only this round.")] = None,
    since: Annotated[str | None, Parameter(help="Only the last 30s, 10m, 2h or 1d.")] = None,
    evidence: Annotated[bool, Parameter(negative=(), help="Only refusals and evidence.")] = False,
    json_output: Annotated[bool, Parameter(name="--json", negative=(), help="JSON lines.")] = False,
) -> None:
    """Tell what happened in a run or a swarm."""
    after = datetime.now(UTC) - _duration(since) if since else None
    journal = _journal(run, peer)
    for event in read_journal(journal):
        fields = msgspec.to_builtins(event)
        if about is not None and about not in (fields.get("name"), fields.get("leader")):
            continue
        if round_number is not None and fields.get("round") != round_number:
            continue
        if evidence and not isinstance(event, _CONDUCT):
            continue
        if after is not None and datetime.fromisoformat(event.time) < after:
            continue
        convicting = _evidence_of(journal, event) if evidence else None
        if convicting is not None:
            fields["file"] = str(convicting)
        print(json.dumps(fields) if json_output else _line(event, fields))


_CONDUCT = (
    events.ContributionRefused,
    events.Misbehaved,
    events.PeerQuarantined,
    events.PeerEvicted,
    events.PeerStruck,
    events.ForkSeen,
)


def _evidence_of(journal: Path, event: events.Event) -> Path | None:
    """The file that convicts whom an event is about, where there is one."""
    if not isinstance(event, events.PeerEvicted):
        return None
    path = evidence_file(journal.parent, event)
    return path if path.is_file() else None


def _journal(run: str | None, peer: str | None) -> Path:
    try:
        swarm = find_swarm(run)
    except PeerformerError:
        if run is None:
            raise
        journals = [path / "journal.jsonl" for path in (Path(run), Path("runs") / run)]
        journals += [path / "journal.jsonl" for path in Path("runs").glob(f"*-{run}")]
        found = [path for path in journals if path.is_file()]
        if not found:
            raise
        return found[0]
    directories = swarm.peers()
    if peer is not None:
        known = {directory.name: directory for directory in directories}
        if peer not in known:
            raise ConfigError(
                f"there is no peer called {peer} here", why=f"known: {', '.join(sorted(known))}"
            )
        return known[peer].journal
    return _fullest(swarm).journal


def _fullest(swarm: SwarmDirectory) -> Any:
    """The journal of whoever decided the most rounds without lying."""
    rows = [(d, d.read_status() or {}) for d in swarm.peers()]
    if not rows:
        raise ConfigError("no peer of this swarm has run here", where=str(swarm.path))
    honest = [row for row in rows if not row[1].get("adversary")] or rows
    return max(
        honest,
        key=lambda row: (
            row[1].get("round", 0),
            row[0].journal.stat().st_size if row[0].journal.exists() else 0,
        ),
    )[0]


def _duration(text: str) -> timedelta:
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.isdigit():
        raise ConfigError(f"--since {text} is no duration", hint="--since 30s, 10m, 2h or 1d")
    return timedelta(seconds=int(number) * _UNITS[unit])


def _line(event: events.Event, fields: dict[str, Any]) -> str:
    words = []
    for key, value in fields.items():
        if key in ("event", "time", "peer") or value in (None, ""):
            continue
        text = f"{value:.3f}" if isinstance(value, float) else str(value)
        words.append(f"{key} {text[:_HASH_SHOWN] + '…' if len(text) == 64 else text}")
    return f"{event.time[11:19]}  {fields['event']:<22} {'  '.join(words)}"
