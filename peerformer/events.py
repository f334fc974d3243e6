"""Everything that can happen in a run, as typed records; one JSON line each.

A record says what happened and to whom; it holds plain numbers and text, peers by their id and
their readable name, digests in hexadecimal. The types read no clock: `journal.py` stamps each
record when it writes it.

This module knows nothing about who writes records or who shows them.
"""

import math
from typing import get_type_hints

import msgspec

from peerformer.day_events import (
    AddressChanged,
    ChunkFetched,
    ClockJumped,
    DiskFull,
    DiskHasRoom,
    HistoryGone,
    NetworkBack,
    NetworkLost,
    QuorumBack,
    QuorumLost,
    Slept,
    SourceReplaced,
    SyncResumed,
    TrainingPaused,
    TrainingResumed,
)
from peerformer.records import Record, snake_case

# One replica -------------------------------------------------------------------------------------


class RunStarted(Record, frozen=True):
    """A training run began, or went on at `step`."""

    run: str
    step: int = 0
    size: str = ""
    parameters: int = 0
    vocab_size: int = 0
    device: str = ""
    dtype: str = ""
    seed: int = 0
    threads: int = 0
    peak_gflops: float = 0.0


class StepDone(Record, frozen=True):
    """One optimizer step; loss in nats a token. In the journal where text was held against it.

    `flop_utilisation` is the share of this machine's peak that forward and backward used;
    `memory_bytes` the most that this process had; `experts` what `metrics.csv` says of experts.
    """

    step: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    gradient_norm: float
    bits_per_byte: float = math.nan
    flop_utilisation: float = math.nan
    memory_bytes: int = 0
    seconds_left: float = math.nan
    experts: tuple[tuple[str, float], ...] = ()


class ExpertsCounted(Record, frozen=True):
    """How the tokens of one step were spread over the experts of a layer, which is from 0.

    `shares` add up to 1; `dropped` is the share of assignments that exceeded the capacity.
    """

    step: int
    layer: int
    shares: tuple[float, ...]
    dropped: float


class StepSkipped(Record, frozen=True):
    """A step changed nothing: its gradient would have done harm."""

    step: int
    why: str


class Sampled(Record, frozen=True):
    """The model in training went on with a prompt."""

    step: int
    prompt: str
    text: str


class Validated(Record, frozen=True):
    """The held-out text was scored; loss in nats a token."""

    step: int
    loss: float
    bits_per_byte: float


class SourceValidated(Record, frozen=True):
    """The held-out text of one source was scored; loss in nats a token."""

    step: int
    source: str
    loss: float
    bits_per_byte: float


class CheckpointSaved(Record, frozen=True):
    """A checkpoint is complete on disk."""

    step: int
    path: str
    digest: str


class RunStopped(Record, frozen=True):
    """The run ended after `step` steps: finished, stalled, interrupted, diverged."""

    step: int
    reason: str


# A swarm -----------------------------------------------------------------------------------------


class RoundCommitted(Record, frozen=True):
    """More than two thirds of the voters signed this round.

    `utilisation` is the share of the round's time that training took, at most 1. The last four say
    where this peer's time went: training, waiting for others' commitments, fetching and checking
    contributions, voting; with staleness 1 training overlaps the others. All are 0 for a round that
    the peer took no part in.
    """

    round: int
    view: int
    digest: str
    state_root: str
    contributions: int
    accepted: int
    seconds: float
    utilisation: float = 0.0
    training_seconds: float = 0.0
    waiting_seconds: float = 0.0
    checking_seconds: float = 0.0
    voting_seconds: float = 0.0
    bits_per_byte: float | None = None


class ContributionRefused(Record, frozen=True):
    """A contribution was left out of the update, and why."""

    round: int
    peer: str
    name: str
    reason: str
    evidence: str = ""


class ViewChanged(Record, frozen=True):
    """The proposer was given up for the next one."""

    round: int
    view: int
    leader: str
    reason: str


class PeerQuarantined(Record, frozen=True):
    """A peer's contributions do not count until `until_round`."""

    round: int
    peer: str
    name: str
    until_round: int


class PeerEvicted(Record, frozen=True):
    """The voters removed a peer on evidence."""

    round: int
    peer: str
    name: str
    evidence: str


class PeerJoined(Record, frozen=True):
    """A peer became a member, or a guest a voter."""

    round: int
    peer: str
    name: str
    role: str = "voter"


class PeerLeft(Record, frozen=True):
    """A member left."""

    round: int
    peer: str
    name: str


class PeerSuspended(Record, frozen=True):
    """A voter was away for `idle_rounds` rounds: it stays a member, the vote goes on without it."""

    round: int
    peer: str
    name: str
    idle_rounds: int


class PeerReturned(Record, frozen=True):
    """A suspended voter is back and votes again."""

    round: int
    peer: str
    name: str


class PeerStruck(Record, frozen=True):
    """A member vouched for a peer that was evicted: it lost reputation, and may not vouch now."""

    round: int
    peer: str
    name: str
    reason: str


class PeerAudited(Record, frozen=True):
    """This peer repeated another's training, which the beacon had picked, and says how it went."""

    round: int
    peer: str
    name: str
    passed: bool
    why: str


class ContributionsAlike(Record, frozen=True):
    """A contribution points where another one does: one of both may be a copy. No proof."""

    round: int
    peer: str
    name: str
    other: str
    other_name: str


class WorkDoubted(Record, frozen=True):
    """A peer's contributions do its own data no more good than other data: perhaps no work."""

    round: int
    peer: str
    name: str
    gain_micronats: int


class PeerConnected(Record, frozen=True):
    """An encrypted connection to a peer stands."""

    peer: str
    name: str
    reason: str = ""


class PeerDisconnected(Record, frozen=True):
    """The connection to a peer is gone."""

    peer: str
    name: str
    reason: str = ""


class SyncStarted(Record, frozen=True):
    """This peer is behind and fetches the agreed state."""

    from_round: int
    to_round: int


class SyncFinished(Record, frozen=True):
    """The agreed state was fetched and verified."""

    round: int
    state_root: str
    bytes: int
    seconds: float


class CheckpointReached(Record, frozen=True):
    """The chain up to an invitation's checkpoint holds; its headers begin after `from_round`."""

    round: int
    from_round: int


class CheckpointAwaited(Record, frozen=True):
    """A newcomer has an invitation, and nobody yet who can serve its checkpoint; why."""

    round: int
    reason: str


class Misbehaved(Record, frozen=True):
    """A peer sent what an honest one does not; `count` such in all."""

    peer: str
    name: str
    reason: str
    count: int = 1


class ForkSeen(Record, frozen=True):
    """Two valid certificates for one round: more than f voters lied, and this peer has stopped."""

    round: int
    digests: tuple[str, ...]


class NodeStarted(Record, frozen=True):
    """A node listens and begins to look for its peers."""

    peer: str
    name: str
    address: str = ""
    version: str = ""


class NodeStopped(Record, frozen=True):
    """A node stopped, and why."""

    peer: str
    name: str
    reason: str


class Trained(Record, frozen=True):
    """The local training of a round is done; loss in nats a token."""

    round: int
    loss: float
    seconds: float
    tokens: int


class KeyUsedElsewhere(Record, frozen=True):
    """A decided round shows a statement of this peer that it does not remember to have signed."""

    round: int
    peer: str
    name: str
    what: str


class Warned(Record, frozen=True):
    """Something that a person should know of, while the node goes on: what, why, and the cure."""

    what: str
    why: str = ""
    hint: str = ""


class Waiting(Record, frozen=True):
    """A wait that a person may wonder about: what for, since when, until when (UTC ISO-8601)."""

    what: str
    since: str
    until: str


Event = (
    RunStarted
    | StepDone
    | ExpertsCounted
    | StepSkipped
    | Sampled
    | Validated
    | SourceValidated
    | CheckpointSaved
    | RunStopped
    | RoundCommitted
    | ContributionRefused
    | ViewChanged
    | PeerQuarantined
    | PeerEvicted
    | PeerJoined
    | PeerLeft
    | PeerSuspended
    | PeerReturned
    | PeerStruck
    | PeerAudited
    | ContributionsAlike
    | WorkDoubted
    | PeerConnected
    | PeerDisconnected
    | SyncStarted
    | SyncFinished
    | CheckpointReached
    | CheckpointAwaited
    | Misbehaved
    | ForkSeen
    | NodeStarted
    | NodeStopped
    | Trained
    | ChunkFetched
    | SourceReplaced
    | SyncResumed
    | HistoryGone
    | TrainingPaused
    | TrainingResumed
    | QuorumLost
    | QuorumBack
    | NetworkLost
    | NetworkBack
    | AddressChanged
    | ClockJumped
    | Slept
    | DiskFull
    | DiskHasRoom
    | KeyUsedElsewhere
    | Warned
    | Waiting
)

# JSON has no NaN, and a diverged loss is written as null: these fields read null as NaN again.
_NUMBERS: dict[str, frozenset[str]] = {
    snake_case(kind.__name__): frozenset(
        name for name, hint in get_type_hints(kind).items() if hint is float
    )
    for kind in Event.__args__
}


def encode_event(event: Event) -> bytes:
    """One event as one line of JSON, without the newline."""
    return msgspec.json.encode(event)


def decode_event(line: bytes) -> Event:
    """The inverse of `encode_event`.

    Raises:
        msgspec.DecodeError: the line is not JSON, or (as `ValidationError`) no event known here.
    """
    fields = msgspec.json.decode(line)
    if isinstance(fields, dict):
        for name in _NUMBERS.get(str(fields.get("event")), ()):
            if name in fields and fields[name] is None:
                fields[name] = math.nan
    return msgspec.convert(fields, Event)
