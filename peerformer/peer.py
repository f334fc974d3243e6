"""One participant: the protocol machine and the bench that does its tensor work.

The node and the simulator run this same class. `handle` is the machine's; `perform` does one
ordered work at a time, in the order given, on the bench: the agreed state behind it moves only by
Adopt and `install`. What needs a network (fetching, dialling) is the caller's. Nothing here reads
a clock.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from peerformer.protocol.audits import AUDIT_ROUNDS
from peerformer.protocol.conduct import is_exhibit
from peerformer.protocol.effects import (
    Adopt,
    Applied,
    Apply,
    Audited,
    Check,
    Checked,
    Effect,
    Event,
    Inspect,
    Repeat,
    Result,
    Reveal,
    Train,
    Trained,
    Work,
    WorkFinished,
)
from peerformer.protocol.identity import blob_hash
from peerformer.protocol.machine import Machine
from peerformer.protocol.messages import NO_HASH

RECORDS_KEPT = AUDIT_ROUNDS + 1


@dataclass(frozen=True, slots=True)
class Made:
    """What local training made: the encoded contribution, and the record of where it departed.

    The record is empty in a swarm without audits.
    """

    blob: bytes
    record: bytes
    tokens: int


class Blobs(Protocol):
    """Content-addressed bytes that this peer holds and serves."""

    def put(self, key: bytes, data: bytes, *, durable: bool, hidden: bool = False) -> None:
        """Hold bytes under a key; hidden ones are not served before they are revealed."""

    def get(self, key: bytes) -> bytes | None:
        """Return the bytes held under a key."""

    def reveal(self, key: bytes) -> None:
        """Serve a hidden blob from now on."""

    def discard(self, key: bytes) -> None:
        """Hold a blob no longer."""


class Bench(Protocol):
    """The tensor side of a peer; see `train.agreed` for the real one."""

    def train(self, round_number: int, seed: bytes, should_stop: Callable[[], bool]) -> Made | None:
        """Run the local steps from the agreed state; None if nothing is fit to be sent."""

    def check(self, work: Check, blob: bytes) -> Checked:
        """Decode a contribution and, given seeds, score it on held-out text and on its own."""

    def repeat(
        self, work: Repeat, blob: bytes, record: bytes, should_stop: Callable[[], bool]
    ) -> Audited:
        """Train from a peer's record again, and compare the outcome with what it contributed."""

    def apply(
        self, round_number: int, blobs: list[tuple[bytes, bytes]], seed: bytes
    ) -> Applied | None:
        """Aggregate (author, blob) pairs onto the agreed state of the round before.

        Returns None if the bench's state is not that of the round before.
        """

    def adopt(self, round_number: int, apply: Apply | None, root: bytes, *, accepted: bool) -> bool:
        """Make an aggregation's outcome the agreed state; False if its root is another."""

    def install(self, round_number: int, root: bytes, state: bytes) -> bool:
        """Replace the agreed state by fetched bytes; False if they are not that state."""


class Participant(Protocol):
    """A peer, honest or not: what the node and the simulator run."""

    machine: Machine
    bench: Bench
    blobs: Blobs

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Advance by one event; see Machine.handle."""

    def perform(self, work: Work, should_stop: Callable[[], bool] = ...) -> WorkFinished:
        """Do one work on the bench. Called in the order in which works were started."""


class Peer:
    """A machine with its bench and its blobs."""

    def __init__(self, machine: Machine, bench: Bench, blobs: Blobs) -> None:
        """Join the three."""
        self.machine, self.bench, self.blobs = machine, bench, blobs
        self.records: deque[bytes] = deque()  # keys of those that auditors may ask for

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Advance the machine by one event; see Machine.handle."""
        return self.machine.handle(event, now)

    def perform(self, work: Work, should_stop: Callable[[], bool] = lambda: False) -> WorkFinished:
        """Do one work on the bench. Called in the order in which works were started."""
        return WorkFinished(work, self._perform(work, should_stop))

    def _perform(self, work: Work, should_stop: Callable[[], bool]) -> Result:
        match work:
            case Train(number, seed):
                made = self.bench.train(number, seed, should_stop)
                return None if made is None else self._keep(number, made)
            case Reveal(_, key):
                self.blobs.reveal(key)
                return True
            case Check(_, _, key, size):
                blob = self.blobs.get(key)
                if blob is None or len(blob) != size:
                    return Checked("it is gone", None)
                return self.bench.check(work, blob)
            case Inspect(exhibit):
                blob = self.blobs.get(exhibit.blob_hash)
                if blob is None or not is_exhibit(blob, exhibit, self.machine.chain.chain_id):
                    return None
                looked = (exhibit.round, exhibit.author, exhibit.blob_hash, exhibit.size)
                return self.bench.check(Check(*looked, None), blob)
            case Repeat():
                return self._repeat(work, should_stop)
            case Apply(number, contributions, seed):
                blobs = [(entry.peer, self.blobs.get(entry.blob_hash)) for entry in contributions]
                held = [(peer, blob) for peer, blob in blobs if blob is not None]
                if len(held) < len(blobs):
                    return None
                return self.bench.apply(number, held, seed)
            case Adopt(number, apply, root, accepted):
                return self.bench.adopt(number, apply, root, accepted=accepted)
        raise AssertionError(f"{work} is not done on the bench")

    def _keep(self, number: int, made: Made) -> Trained:
        chain_id, me = self.machine.chain.chain_id, self.machine.me
        key = blob_hash(chain_id, number, me, [made.blob])
        self.blobs.put(key, made.blob, durable=True, hidden=True)
        record_key = NO_HASH
        if made.record:
            record_key = blob_hash(chain_id, number, me, [made.record])
            self.blobs.put(record_key, made.record, durable=True)
            self.records.append(record_key)
            while len(self.records) > RECORDS_KEPT:
                self.blobs.discard(self.records.popleft())
        return Trained(key, len(made.blob), record_key, made.tokens, len(made.record))

    def _repeat(self, work: Repeat, should_stop: Callable[[], bool]) -> Audited:
        record, blob = self.blobs.get(work.record_hash), self.blobs.get(work.blob_hash)
        if record is None or blob is None:
            return Audited(passed=None, why="it is gone")
        audited = self.bench.repeat(work, blob, record, should_stop)
        if work.author != self.machine.me:
            self.blobs.discard(work.record_hash)
        return audited
