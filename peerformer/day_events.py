"""What happens to a node from day to day: states fetched, sleep, clocks, networks, disks."""

from peerformer.records import Record


class ChunkFetched(Record, frozen=True):
    """A chunk of the agreed state is here and proven: `done` of `chunks` are, so many `bytes`."""

    round: int
    index: int
    done: int
    chunks: int
    peer: str
    name: str
    bytes: int
    seconds: float


class SourceReplaced(Record, frozen=True):
    """A source of the agreed state is not asked any more: it lied, was slow, or has it not."""

    round: int
    peer: str
    name: str
    reason: str


class SyncResumed(Record, frozen=True):
    """Chunks of this state were on disk, fetched and proven before a restart."""

    round: int
    done: int
    chunks: int
    bytes: int


class HistoryGone(Record, frozen=True):
    """A peer keeps no headers from `round` on: this one, which has none, needs an invitation."""

    round: int
    peer: str
    name: str


class TrainingPaused(Record, frozen=True):
    """This peer trains no more for now; it votes and serves. `until` is local, if it is known."""

    reason: str
    until: str = ""


class TrainingResumed(Record, frozen=True):
    """This peer trains again."""

    reason: str


class QuorumLost(Record, frozen=True):
    """Too few voters are connected to decide anything: this peer waits, and serves what it has."""

    connected: int
    quorum: int


class QuorumBack(Record, frozen=True):
    """Enough voters are connected again, after so many seconds."""

    connected: int
    seconds: float


class NetworkLost(Record, frozen=True):
    """All connections ended at once: so many peers. They are dialled again at once."""

    peers: int


class NetworkBack(Record, frozen=True):
    """The first peer is connected again after all were lost."""

    seconds: float


class AddressChanged(Record, frozen=True):
    """This machine is reached at other addresses now; the others are told."""

    before: tuple[str, ...]
    now: tuple[str, ...]


class ClockJumped(Record, frozen=True):
    """The system's clock was set, forward or (negative) back; timers do not follow it."""

    seconds: float


class Slept(Record, frozen=True):
    """This machine slept, or the process stood still, for so long; it catches up."""

    seconds: float
    cause: str


class DiskFull(Record, frozen=True):
    """Nothing more fits on the disk: this peer does not vote until there is room."""

    where: str
    why: str


class DiskHasRoom(Record, frozen=True):
    """There is room on the disk again, after so many seconds."""

    seconds: float
