"""`peerformer log`: what happened, from the journals."""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from peerformer import events
from peerformer.errors import ConfigError, DataError, PeerformerError
from peerformer.interface.words import words_of
from peerformer.journal import read_journal
from peerformer.node.directory import find_swarm
from peerformer.node.evidence import evidence_file
from peerformer.node.overview import chosen_peer
from peerformer.node.stored import stored_headers
from peerformer.protocol.light_client import (
    LightClient,
    RoundCertificate,
    RoundEvidence,
    show_document,
)

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
    evidence: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Only refusals and evidence; with --round also what convicted, as a JSON file "
            "for `verify` on stdout.",
        ),
    ] = False,
    certificate: Annotated[
        bool,
        Parameter(negative=(), help="The --round with its signatures, a JSON file for `verify`."),
    ] = False,
    json_output: Annotated[bool, Parameter(name="--json", negative=(), help="JSON lines.")] = False,
) -> None:
    """Tell what happened in a run or a swarm."""
    if certificate:
        if round_number is None or evidence:
            raise ConfigError("--certificate goes with a --round, and without --evidence")
        print(json.dumps(show_document(_decided(run, peer, round_number)[0]), indent=1))
        return
    after = datetime.now(UTC) - _duration(since) if since else None
    # What convicts is the result then, and what is told of it is not to get into the file.
    told = sys.stderr if evidence and round_number is not None else sys.stdout
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
        kept = _evidence_of(journal, event) if evidence else None
        if kept is not None:
            fields["file"] = str(kept)
        print(json.dumps(fields) if json_output else _line(event, fields), file=told)
    if told is sys.stderr and round_number is not None:
        convicting = _decided(run, peer, round_number)[1]
        if convicting.evidence:
            print(json.dumps(show_document(convicting), indent=1))


_CONDUCT = (
    events.ContributionRefused,
    events.Misbehaved,
    events.PeerAudited,
    events.ContributionsAlike,
    events.WorkDoubted,
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
    return chosen_peer(swarm, peer).journal


def _decided(
    run: str | None, peer: str | None, number: int
) -> tuple[RoundCertificate, RoundEvidence]:
    """Return a decided round as files to hand on, from a store that is verified up to there."""
    swarm = find_swarm(run)
    directory = chosen_peer(swarm, peer)
    stored = stored_headers(directory)
    client = LightClient(swarm.genesis(), frozenset({number}), stored.base)
    before = client.chain.base.round
    fault = client.follow(stored.records[: max(0, number - before)])
    if fault is not None:
        raise DataError(
            f"round {fault.round} in this peer's store does not hold",
            where=str(directory.path),
            why=fault.what,
            hint="--peer ANOTHER",
        )
    if client.chain.item(number) is None:
        raise ConfigError(
            f"round {number} is not decided in this peer's store",
            where=str(directory.path),
            why=f"it holds rounds {before + 1} to {before + len(stored.records)}"
            if stored.records
            else "it has none",
        )
    return client.certificate_of(number), client.evidence_of(number)


def _duration(text: str) -> timedelta:
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.isdigit():
        raise ConfigError(f"--since {text} is no duration", hint="--since 30s, 10m, 2h or 1d")
    return timedelta(seconds=int(number) * _UNITS[unit])


_IN_WORDS = (
    events.TrainingPaused,
    events.TrainingResumed,
    events.QuorumLost,
    events.QuorumBack,
    events.NetworkLost,
    events.NetworkBack,
    events.AddressChanged,
    events.ClockJumped,
    events.Slept,
    events.DiskFull,
    events.DiskHasRoom,
    events.SyncResumed,
    events.SourceReplaced,
    events.HistoryGone,
)


def _line(event: events.Event, fields: dict[str, Any]) -> str:
    if isinstance(event, _IN_WORDS):
        return f"{event.time[11:19]}  {fields['event']:<22} {words_of(event)}"
    words = []
    for key, value in fields.items():
        if key in ("event", "time", "peer") or value in (None, ""):
            continue
        text = f"{value:.3f}" if isinstance(value, float) else str(value)
        text = json.dumps(text, ensure_ascii=False) if "\n" in text else text
        words.append(f"{key} {text[:_HASH_SHOWN] + '…' if len(text) == 64 else text}")
    return f"{event.time[11:19]}  {fields['event']:<22} {'  '.join(words)}"
