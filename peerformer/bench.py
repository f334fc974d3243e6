"""The real bench: a learner with an agreed state behind the interface that `Peer` works with.

It turns states into roots and proofs and keeps the last few, so that others can fetch their
chunks. Where a state is saved, and how chunks reach others, is the caller's: it is told by
`on_state`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from peerformer.config import Config
from peerformer.gradients.fixed_point import AgreedState, Layout
from peerformer.peer import Made
from peerformer.protocol.effects import Applied, Apply, Audited, Check, Checked, Repeat
from peerformer.protocol.merkle import MerkleTree, leaf_count, leaf_span
from peerformer.train.agreed import AgreedReplica, Contribution, Judged
from peerformer.train.replay import Repetition

STATES_KEPT = 3  # rounds whose state is served; a newcomer fetches while rounds go on
COMPUTED_KEPT_MAX = 4


@dataclass(frozen=True, slots=True)
class ServedState:
    """The bytes of one agreed state, with the tree that proves its chunks."""

    round: int
    data: bytes
    tree: MerkleTree

    @classmethod
    def of(cls, round_number: int, state: AgreedState) -> "ServedState":
        """Serialise and hash a state."""
        data = state.to_bytes()
        view = memoryview(data)
        tree = MerkleTree(len(data), lambda start, end: bytes(view[start:end]))
        return cls(round_number, data, tree)

    def chunk(self, index: int) -> bytes:
        """Return a leaf behind its proof: what is fetched under the chunk's key."""
        start, end = leaf_span(len(self.data), index)
        return self.tree.proof(index) + self.data[start:end]

    @property
    def chunk_count(self) -> int:
        """The number of leaves."""
        return leaf_count(len(self.data))


class Learner(Protocol):
    """What trains from the agreed state: an `AgreedReplica`, or a module that a user brings."""

    config: Config
    layout: Layout
    state: AgreedState
    round: int

    def train(
        self, round_number: int, seed: bytes, should_stop: Callable[[], bool]
    ) -> Contribution | None:
        """See AgreedReplica.train; so for all that follow."""

    def check(
        self, blob: bytes, score_seed: bytes | None, key: bytes, shard_seed: bytes | None = None
    ) -> Judged:
        """Judge a contribution."""

    def repeat(
        self,
        round_number: int,
        blob: bytes,
        record: bytes,
        seed: bytes,
        should_stop: Callable[[], bool],
    ) -> Repetition:
        """Train for a round as its author says it did."""

    def apply(
        self, round_number: int, blobs: list[tuple[bytes, bytes]], seed: bytes
    ) -> tuple[AgreedState, tuple[bytes, ...]] | None:
        """Return the state after these contributions, and whose norm was refused."""

    def move_to(self, round_number: int, state: AgreedState, *, accepted: bool | None) -> None:
        """Make a state the agreed one."""

    def save_local(self, path: Path) -> None:
        """Save what is this peer's alone."""

    def load_local(self, path: Path) -> bool:
        """Take up what `save_local` wrote."""


Kind = TypeVar("Kind", bound=Learner)


@dataclass(slots=True)
class TensorBench(Generic[Kind]):
    """A learner as a bench. `on_state` is called with each state that became agreed."""

    replica: Kind
    on_state: Callable[[ServedState], None] = lambda _: None
    on_trained: Callable[[int, float, int], None] = lambda *_: None
    computed: dict[bytes, tuple[AgreedState, ServedState]] = field(default_factory=dict)

    def train(self, round_number: int, seed: bytes, should_stop: Callable[[], bool]) -> Made | None:
        """Train locally; see AgreedReplica.train."""
        made = self.replica.train(round_number, seed, should_stop)
        if made is None:
            return None
        self.on_trained(round_number, made.loss, made.tokens)
        return Made(made.blob, made.record, made.tokens)

    def check(self, work: Check, blob: bytes) -> Checked:
        """Decode and score a contribution."""
        found = self.replica.check(blob, work.score_seed, work.blob_hash, work.shard_seed)
        return Checked(found.fault, found.score, found.fault is not None, found.alike, found.gain)

    def repeat(
        self, work: Repeat, blob: bytes, record: bytes, should_stop: Callable[[], bool]
    ) -> Audited:
        """Repeat another's training; see AgreedReplica.repeat."""
        found = self.replica.repeat(work.round, blob, record, work.seed, should_stop)
        return Audited(found.passed, found.why)

    def apply(
        self, round_number: int, blobs: list[tuple[bytes, bytes]], seed: bytes
    ) -> Applied | None:
        """Aggregate, and remember the outcome until something is adopted."""
        outcome = self.replica.apply(round_number, blobs, seed)
        if outcome is None:
            return None
        state, refused = outcome
        served = ServedState.of(round_number, state)
        while len(self.computed) >= COMPUTED_KEPT_MAX:
            del self.computed[next(iter(self.computed))]
        self.computed[served.tree.root] = (state, served)
        return Applied(served.tree.root, refused)

    def adopt(self, round_number: int, apply: Apply | None, root: bytes, *, accepted: bool) -> bool:
        """Move to a computed state, or stay for a null round."""
        if apply is None:
            state = self.replica.state
            served = ServedState.of(round_number, state)
        elif root in self.computed:
            state, served = self.computed[root]
        else:
            return False
        if served.tree.root != root:
            return False
        self.replica.move_to(round_number, state, accepted=accepted)
        self._serve(served)
        return True

    def install(self, round_number: int, root: bytes, state: bytes) -> bool:
        """Move to a fetched state."""
        try:
            fetched = AgreedState.from_bytes(state, self.replica.layout.size)
        except ValueError:
            return False
        served = ServedState.of(round_number, fetched)
        if served.tree.root != root:
            return False
        self.replica.move_to(round_number, fetched, accepted=None)
        self._serve(served)
        return True

    def _serve(self, served: ServedState) -> None:
        self.computed.clear()
        self.on_state(served)

    def poison_from(self, name: str, round_number: int) -> None:
        """Tell an attack on learning from a round on."""
        assert isinstance(self.replica, AgreedReplica), "others lie by themselves"
        self.replica.poison_from(name, round_number)
