"""One machine of a simulated world: a key, a clock, a disk, and a peer while it is up."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from peerformer import events
from peerformer.peer import Participant
from peerformer.protocol.anchoring import Anchoring
from peerformer.protocol.checkpoint import Checkpoint
from peerformer.protocol.effects import Train
from peerformer.protocol.identity import HashChain, KeyPair
from peerformer.protocol.machine import Machine
from peerformer.protocol.membership import VOTER
from peerformer.simulate.disk import Disk

HASH_CHAIN_LENGTH = 2_000  # more rounds than a world lasts
TWIN = "twin"  # no lie of its own: the key runs on two hosts, and each keeps to the protocol


class Replicas(Protocol):
    """What a world needs to know of its benches, toy or real."""

    @property
    def state_size(self) -> int:
        """Bytes of an agreed state."""

    @property
    def blob_size_max(self) -> int:
        """Bytes of the largest contribution."""

    @property
    def recipe(self) -> bytes:
        """The recipe that the genesis carries."""

    @property
    def bits_per_byte(self) -> dict[int, float]:
        """How good the agreed state of a round is, where there is a model to measure."""

    @property
    def by_kind(self) -> dict[str, float]:
        """How good the newest agreed state is on each kind of text, where they are unlike."""

    @property
    def backdoor_answered(self) -> float:
        """How often the newest agreed state answers a backdoor's trigger as its liars wish."""

    def first_state(self) -> bytes:
        """Return the agreed state of round 0."""

    def bench(self, me: bytes, life: int, *, poisons: bool) -> Any:
        """Return a bench at round 0."""

    def state_of(self, bench: Any) -> tuple[int, bytes]:
        """Return the round and the bytes of a bench's agreed state."""


@dataclass(slots=True)
class WorldBlobs:
    """Blobs of one host. Those not written durably may be lost in a crash."""

    held: dict[bytes, bytes] = field(default_factory=dict)
    hidden: set[bytes] = field(default_factory=set)
    fleeting: set[bytes] = field(default_factory=set)

    def put(self, key: bytes, data: bytes, *, durable: bool, hidden: bool = False) -> None:
        """Hold bytes."""
        self.held[key] = data
        if hidden:
            self.hidden.add(key)
        if durable:
            self.fleeting.discard(key)
        else:
            self.fleeting.add(key)

    def get(self, key: bytes) -> bytes | None:
        """Return bytes."""
        return self.held.get(key)

    def reveal(self, key: bytes) -> None:
        """Serve from now on."""
        self.hidden.discard(key)

    def discard(self, key: bytes) -> None:
        """Hold bytes no longer."""
        self.held.pop(key, None)
        self.hidden.discard(key)
        self.fleeting.discard(key)

    def lose_fleeting(self) -> None:
        """Forget what was not durable: the power failed."""
        for key in self.fleeting:
            self.held.pop(key, None)
        self.fleeting.clear()


@dataclass(slots=True)
class Host:
    """One machine of the world."""

    index: int
    seed: bytes
    keys: KeyPair
    chain: HashChain
    attacks: tuple[str, ...] = ()
    role: int = VOTER  # the one it asks for
    checkpoint: Checkpoint | None = None  # of the invitation with which it comes
    anchoring: Anchoring | None = None  # it is up, and on the way to its checkpoint
    disk: Disk = field(default_factory=Disk)
    snapshot: tuple[int, bytes] | None = None  # the newest state saved, and its round
    snapshot_every: int = 1
    served: dict[bytes, bytes] = field(default_factory=dict)  # root -> older state in use by others
    blobs: WorldBlobs = field(default_factory=WorldBlobs)
    peer: Participant | None = None
    life: int = 0  # grows at each crash: what was scheduled for an earlier life is void
    timers: dict[str, int] = field(default_factory=dict)
    links: set[int] = field(default_factory=set)
    reports: list[events.Event] = field(default_factory=list)
    busy_until: float = 0.0
    training: Train | None = None  # in hand beside other works (staleness 1)
    training_until: float = 0.0
    clock_offset: float = 0.0
    frozen_until: float = 0.0  # the lid is closed: nothing runs before
    retired: bool = False  # its disk is torn: its key must not be used again
    effects_until_crash: int | None = None
    persists: int = 0

    @classmethod
    def made(cls, index: int, seed: bytes, hash_chain_length: int = HASH_CHAIN_LENGTH) -> "Host":
        """Return a host with the key of a seed."""
        chain = HashChain.from_seed(seed, hash_chain_length)
        return cls(index, seed, KeyPair.from_seed(seed), chain)

    @property
    def me(self) -> bytes:
        """The peer id."""
        return self.keys.peer_id

    @property
    def honest(self) -> bool:
        """Whether it keeps to the protocol."""
        return not self.attacks

    @property
    def up(self) -> bool:
        """Whether it runs, as a peer or on the way to become one."""
        return self.peer is not None or self.anchoring is not None

    @property
    def machine(self) -> Machine | None:
        """The protocol state, while it is up."""
        return self.peer.machine if self.peer is not None else None
