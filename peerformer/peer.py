"""One participant: the protocol machine and the bench that does its tensor work.

The node and the simulator run this same class. `handle` is the machine's; `perform` does one
ordered work at a time, in the order given, on the bench: the agreed state behind it moves only by
Adopt and `install`. What needs a network (fetching, dialling) is the caller's. Nothing here reads
a clock.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from peerformer.protocol.conduct import is_exhibit
from peerformer.protocol.effects import (
    Adopt,
    Applied,
    Apply,
    Check,
    Checked,
    Effect,
    Event,
    Inspect,
    Result,
    Reveal,
    Train,
    Trained,
    Work,
    WorkFinished,
)
from peerformer.protocol.identity import blob_hash
from peerformer.protocol.machine import Machine


@dataclass(frozen=True, slots=True)
class Made:
    """What local training made: the encoded contribution, and what it was made with."""

    blob: bytes
    optimizer_root: bytes
    tokens: int


class Blobs(Protocol):
    """Content-addressed bytes that this peer holds and serves."""

    def put(self, key: bytes, data: bytes, *, durable: bool, hidden: bool = False) -> None:
        """Hold bytes under a key; hidden ones are not served before they are revealed."""

    def get(self, key: bytes) -> bytes | None:
        """Return the bytes held under a key."""

    def reveal(self, key: bytes) -> None:
        """Serve a hidden blob from now on."""


class Bench(Protocol):
    """The tensor side of a peer; see `train.agreed` for the real one."""

    def train(self, round_number: int, seed: bytes, should_stop: Callable[[], bool]) -> Made | None:
        """Run the local steps from the agreed state; None if nothing is fit to be sent."""

    def check(self, blob: bytes, score_seed: bytes | None) -> Checked:
        """Decode a contribution and, given a seed, score it on held-out text."""

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
            case Check(_, _, key, size, score_seed):
                blob = self.blobs.get(key)
                if blob is None or len(blob) != size:
                    return Checked("it is gone", None)
                return self.bench.check(blob, score_seed)
            case Inspect(exhibit):
                blob = self.blobs.get(exhibit.blob_hash)
                if blob is None or not is_exhibit(blob, exhibit, self.machine.chain.chain_id):
                    return None
                return self.bench.check(blob, None)
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
        return Trained(key, len(made.blob), made.optimizer_root, made.tokens)
