"""What the world tells a peer and what a peer asks of the world: the one interface that matters.

    Event  -> Machine.handle(event, now) -> list[Effect]

The caller carries effects out in order; what is persisted is durable before anything after it is
sent. `StartWork` orders what takes time (tensors, transfers, dialling) without knowing how it is
done; the answer comes back as `WorkFinished`.
"""

from dataclasses import dataclass

from peerformer import events
from peerformer.protocol.conduct import Exhibit
from peerformer.protocol.messages import Accepted, Evidence, Packet
from peerformer.protocol.newcomer_packets import Farewell

# --- works -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Train:
    """Run the round's local steps; answered by Trained or None. A later one ends an earlier one.

    They depart from the agreed state of the round before; ordered while that round is still open
    (staleness 1), from what the peer's own contribution to it left.
    """

    round: int
    seed: bytes  # which data; see `training.shard_seed`


@dataclass(frozen=True, slots=True)
class Trained:
    """A contribution is stored durably but hidden under its hash."""

    blob_hash: bytes
    size: int
    record_hash: bytes
    tokens: int
    record_size: int = 0
    seconds: float | None = None  # spent in the steps themselves, if whoever did them measured


@dataclass(frozen=True, slots=True)
class Reveal:
    """Serve my contribution from now on; not answered."""

    round: int
    blob_hash: bytes


@dataclass(frozen=True, slots=True)
class FetchBlob:
    """Fetch a contribution from the first source that has it; answered by a bool."""

    round: int
    author: bytes
    blob_hash: bytes
    size: int
    sources: tuple[bytes, ...]
    record: bool = False  # of a training, for an audit; else a contribution


@dataclass(frozen=True, slots=True)
class Check:
    """Decode a contribution that is held, and score it if `score_seed` is given; see Checked.

    `shard_seed`: the data that its author had to train on, for whoever is to test that.
    """

    round: int
    author: bytes
    blob_hash: bytes
    size: int
    score_seed: bytes | None
    shard_seed: bytes | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """`fault` is None for what decodes; `score` is in micro-nats, positive is better.

    `malformed`: the bytes are there and encode no contribution, as everybody finds who looks. Any
    other fault is this machine's own, and says nothing about anybody. `alike`: the hash of another
    contribution that it is a copy of, by all that was compared; empty for this peer's own. `gain`:
    by how much more it lowers the loss on its author's data than on other data, in micro-nats.
    """

    fault: str | None
    score: int | None
    malformed: bool = False
    alike: bytes | None = None
    gain: int | None = None


@dataclass(frozen=True, slots=True)
class Inspect:
    """Fetch a contribution unless it is held, and decode it, as evidence; Checked or None."""

    exhibit: Exhibit
    sources: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """Repeat a training whose contribution and record are held; answered by Audited."""

    round: int
    author: bytes
    blob_hash: bytes
    record_hash: bytes
    seed: bytes  # which data


@dataclass(frozen=True, slots=True)
class Audited:
    """Whether a training could be repeated; None if I could not look, for reasons of my own."""

    passed: bool | None
    why: str


@dataclass(frozen=True, slots=True)
class Apply:
    """Aggregate these contributions onto the agreed state of the round before; see Applied."""

    round: int
    contributions: tuple[Accepted, ...]
    seed: bytes


@dataclass(frozen=True, slots=True)
class Applied:
    """The state root that follows, and the contributions refused for their norm."""

    state_root: bytes
    out_of_norm: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Adopt:
    """Make the outcome of an Apply the agreed state (none: the state stays); answered by True.

    `accepted` tells whether my own contribution is in: if not, it goes back into the residual.
    """

    round: int
    apply: Apply | None
    state_root: bytes
    accepted: bool


@dataclass(frozen=True, slots=True)
class FetchState:
    """Fetch the state of a decided round chunk by proven chunk, and install it; a bool."""

    round: int
    state_root: bytes
    size: int
    sources: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to a peer; answered by a bool, and by Connected before it if it went well."""

    peer: bytes
    addresses: tuple[str, ...]


Work = Train | Reveal | FetchBlob | Check | Inspect | Repeat | Apply | Adopt | FetchState | Dial
Result = Trained | Checked | Audited | Applied | bool | None

# --- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """A frame arrived on the authenticated connection of `peer`."""

    peer: bytes
    frame: bytes


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The timer of this name, as last set, ran out."""

    name: str


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection with `peer` is up, its key verified."""

    peer: bytes
    address: str
    outbound: bool


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection with `peer` is gone."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class WorkFinished:
    """A work is done."""

    work: Work
    result: Result


@dataclass(frozen=True, slots=True)
class Command:
    """What the operator asks: `start`, `leave`, `pause` and `resume` training, or `announce`."""

    name: str


Event = Received | TimerFired | Connected | Disconnected | WorkFinished | Command

# --- effects -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Persist:
    """Write these records in one durable transaction, then forget those named in `deleted`."""

    records: tuple[tuple[str, bytes], ...]
    deleted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Send:
    """Send a packet to one connected peer; dropped if it is not connected."""

    peer: bytes
    packet: Packet


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Fire `name` in `seconds`; setting a name again replaces it."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StartWork:
    """Begin a work; it is answered by WorkFinished unless it says otherwise."""

    work: Work


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection of a peer, and say why."""

    peer: bytes
    reason: str
    farewell: Farewell | None = None  # for whoever is sent away for good


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the operator and the journal; `evidence` where there is any."""

    event: events.Event
    evidence: Evidence | None = None


Effect = Persist | Send | SetTimer | StartWork | Disconnect | Report
