"""A bench without tensors: the state is a hash, a contribution is a few bytes.

It keeps the promises that the protocol relies on (the same contributions on the same state give the
same root, and nothing else does) and makes a world of many rounds cheap.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from peerformer.peer import Made
from peerformer.protocol.effects import Applied, Apply, Audited, Check, Checked, Repeat
from peerformer.protocol.identity import hash_of
from peerformer.protocol.merkle import state_root

BLOB_SIZE_BYTES = 40
STATE_SIZE_BYTES = 32
PLAIN, POISON = bytes(8), b"\xff" * 8  # how every blob begins


IDLE = ("half-steps", "other-shard")  # attacks that only an audit can tell
STATES_KEPT = 3  # for auditors


def _trained(state: bytes, seed: bytes, record: bytes) -> bytes:
    """Return what stands for a training."""
    return hash_of("toy blob", state, seed, record)


def first_state() -> bytes:
    """Return the state of round 0."""
    return hash_of("toy state")


@dataclass(slots=True)
class ToyBench:
    """A bench whose state is 32 bytes, as often as the first one has them."""

    me: bytes
    poisons: bool = False
    idles: bool = False  # sends what does good, and is not what it should have trained
    life: int = 0  # training again after a restart makes another blob, as real training does
    state: bytes = field(default_factory=first_state)
    round: int = 0
    computed: dict[bytes, bytes] = field(default_factory=dict)  # root -> state
    audited: bool = False
    before: dict[int, bytes] = field(default_factory=dict)  # the state before each late round

    def train(self, round_number: int, seed: bytes, should_stop: Callable[[], bool]) -> Made | None:
        """Make a blob of the state and the seed; a poisoner's begins with POISON."""
        record = bytes([self.life % 256])
        mark = POISON if self.poisons else PLAIN
        data = hash_of("no work") if self.idles else seed
        return Made(mark + _trained(self.state, data, record), record if self.audited else b"", 100)

    def repeat(
        self, work: Repeat, blob: bytes, record: bytes, should_stop: Callable[[], bool]
    ) -> Audited:
        """Make the blob again that an honest peer would have made."""
        is_next = self.round == work.round - 1  # it is not adopted yet
        state = self.state if is_next else self.before.get(work.round)
        if state is None:
            return Audited(passed=None, why="the state is gone")
        passed = blob == PLAIN + _trained(state, work.seed, record)
        return Audited(passed=passed, why="the same" if passed else "another")

    def check(self, work: Check, blob: bytes) -> Checked:
        """Refuse what does not begin as a toy blob does, and score poison as harmful."""
        mark = blob[: len(PLAIN)]
        if len(blob) != BLOB_SIZE_BYTES or mark not in (PLAIN, POISON):
            return Checked("not a toy blob", None, malformed=True)
        harmful = mark == POISON
        return Checked(None, None if work.score_seed is None else (-10_000 if harmful else 10_000))

    def apply(
        self, round_number: int, blobs: list[tuple[bytes, bytes]], seed: bytes
    ) -> Applied | None:
        """Hash the contributions onto the state."""
        if round_number != self.round + 1:
            return None
        parts = [part for pair in blobs for part in pair]
        copies = len(self.state) // STATE_SIZE_BYTES
        state = copies * hash_of("toy state", self.state, seed, *parts)
        root = state_root(state)
        self.computed[root] = state
        return Applied(root, ())

    def adopt(self, round_number: int, apply: Apply | None, root: bytes, *, accepted: bool) -> bool:
        """Move to a computed state."""
        self.before[round_number] = self.state
        self.before.pop(round_number - STATES_KEPT, None)
        if apply is not None:
            if root not in self.computed:
                return False
            self.state = self.computed[root]
        self.round, self.computed = round_number, {}
        return apply is not None or state_root(self.state) == root

    def poison_from(self, name: str, round_number: int) -> None:
        """Do harm, or only less than was asked: what a hash has for an attack on learning."""
        self.idles = name in IDLE
        self.poisons = not self.idles

    def install(self, round_number: int, root: bytes, state: bytes) -> bool:
        """Move to a fetched state, whose chunks the caller has proven."""
        self.state, self.round, self.computed, self.before = state, round_number, {}, {}
        return True


@dataclass(frozen=True, slots=True)
class ToyReplicas:
    """What a world needs to know of its benches: these are toys."""

    state_size: int = STATE_SIZE_BYTES
    blob_size_max: int = BLOB_SIZE_BYTES
    recipe: bytes = b"{}"
    audited: bool = False

    @property
    def backdoor_answered(self) -> float:
        """Nothing is learned, so nothing is taught."""
        return 0.0

    @property
    def by_kind(self) -> dict[str, float]:
        """Nothing either."""
        return {}

    @property
    def bits_per_byte(self) -> dict[int, float]:
        """Nothing: a hash predicts no text."""
        return {}

    def first_state(self) -> bytes:
        """Return the state of round 0."""
        return self.state_size // STATE_SIZE_BYTES * first_state()

    def bench(self, me: bytes, life: int, *, poisons: bool) -> ToyBench:
        """Return a bench at round 0."""
        state = self.first_state()
        return ToyBench(me, poisons=poisons, life=life, state=state, audited=self.audited)

    def state_of(self, bench: Any) -> tuple[int, bytes]:
        """Return the round and the bytes of the bench's agreed state."""
        return bench.round, bench.state
