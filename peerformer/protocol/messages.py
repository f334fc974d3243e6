"""Every message that crosses the wire, with its limits: one table of frozen dataclasses.

*Statements* are what a peer signs; an `Envelope` is a statement with its sender and signature.
*Packets* are what a connection carries: envelopes together with the material that proves them.
A statement's signed bytes are `tag || chain id || kind || body`, so none serves in another run, and
none can be taken for a TLS signature made with the same key.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, get_args

from peerformer.protocol.attestations import (
    CONTRIBUTIONS_MAX,
    Attestation,
)
from peerformer.protocol.codec import (
    I32,
    U8,
    U16,
    U32,
    U64,
    AtMost,
    Hash,
    MalformedError,
    Many,
    OneOf,
    PeerId,
    Signature,
    decode,
    encode,
)
from peerformer.protocol.identity import KeyPair, hash_of, verify
from peerformer.protocol.newcomer_packets import (
    About,
    AskAbout,
    AskBase,
    AskGenesis,
    BaseOf,
    Farewell,
    GenesisBytes,
    Present,
    Presented,
    ReachedBack,
    Sample,
    Sampled,
)

PROTOCOL_VERSION = 1
SIGNING_TAG = b"peerformer statement 1"
NO_HASH = bytes(32)

VOTERS_MAX = 256  # of one round
MEMBERS_MAX = 8_192  # voters, guests and the banned of one swarm
OPERATIONS_MAX = 64
VOUCHERS_MAX = 8  # of one admission
BODY_SIZE_MAX = 32 * 1024  # the largest statement: an attestation of 256 contributions
ADDRESS_SIZE_MAX = 128
ADDRESSES_MAX = 8
RECORDS_MAX = 32
HEADERS_MAX = 32  # certified headers in one answer
RECIPE_SIZE_MAX = 64 * 1024
PACKET_SIZE_MAX = 4 * 1024 * 1024

Bitmap = Annotated[bytes, AtMost(VOTERS_MAX // 8)]


# --- statements: what a peer signs -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Contribution:
    """What I trained for this round: the keyed hash of my blob, before anybody may see it.

    The record is what the training departed from, for those who may have to repeat it; a swarm
    without audits keeps none.
    """

    round: U64
    blob_hash: Hash
    size: U32
    record_hash: Hash
    tokens: U32
    record_size: U64 = 0


@dataclass(frozen=True, slots=True)
class Proposal:
    """The leader of a view proposes the header with this digest."""

    round: U64
    view: U32
    digest: Hash


@dataclass(frozen=True, slots=True)
class Prepare:
    """First vote: I hold everything in this header and computed its state root myself."""

    round: U64
    view: U32
    digest: Hash


@dataclass(frozen=True, slots=True)
class Commit:
    """Second vote: I saw a quorum of prepares and am locked on them."""

    round: U64
    view: U32
    digest: Hash


@dataclass(frozen=True, slots=True)
class Timeout:
    """I gave up this view; `high_view` is -1 when I am locked on nothing."""

    round: U64
    view: U32
    high_view: I32
    high_digest: Hash


@dataclass(frozen=True, slots=True)
class Join:
    """I ask to become a voter or a guest; signing it proves that I hold the key."""

    round: U64
    chain_anchor: Hash
    role: U8


@dataclass(frozen=True, slots=True)
class Voucher:
    """I, a voter, vouch for this request to join."""

    join_hash: Hash


@dataclass(frozen=True, slots=True)
class Leave:
    """I leave; valid from `round` on, and only for the membership held then."""

    round: U64


@dataclass(frozen=True, slots=True)
class Rejoin:
    """I am back and ask to vote again; valid from `round` on, and only for one suspension."""

    round: U64


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """Where I can be reached; the higher sequence number wins. `expires` in seconds since 1970."""

    addresses: Annotated[
        tuple[Annotated[bytes, AtMost(ADDRESS_SIZE_MAX)], ...], Many(ADDRESSES_MAX)
    ]
    sequence: U64
    expires: U64


Statement = (
    Contribution | Attestation | Proposal | Prepare | Commit | Timeout | Join | Voucher | Leave
    | Rejoin | PeerRecord
)  # fmt: skip
STATEMENTS: tuple[type, ...] = get_args(Statement)  # a statement's kind is its place here


@dataclass(frozen=True)
class Envelope:
    """A signed statement: who said it, what kind it is, its canonical bytes and the signature."""

    sender: PeerId
    kind: U8
    body: Annotated[bytes, AtMost(BODY_SIZE_MAX)]
    signature: Signature

    @cached_property
    def statement(self) -> Statement:
        """The decoded statement; raises MalformedError."""
        if self.kind >= len(STATEMENTS):
            raise MalformedError("unknown statement")
        return decode(STATEMENTS[self.kind], self.body)

    @cached_property
    def canonical(self) -> bytes:
        """The canonical bytes of the whole envelope."""
        return encode(self)


def signed_bytes(chain_id: bytes, kind: int, body: bytes) -> bytes:
    """Return what is signed for a statement."""
    return SIGNING_TAG + chain_id + bytes((kind,)) + body


def sign(keys: KeyPair, chain_id: bytes, statement: Statement) -> Envelope:
    """Return the signed envelope of a statement."""
    kind, body = STATEMENTS.index(type(statement)), encode(statement)
    envelope = Envelope(keys.peer_id, kind, body, keys.sign(signed_bytes(chain_id, kind, body)))
    vars(envelope)["statement"] = statement  # as it would decode
    return envelope


def is_genuine(envelope: Envelope, chain_id: bytes) -> bool:
    """Tell whether the sender signed these very bytes for this chain; never raises."""
    return envelope.kind < len(STATEMENTS) and verify(
        envelope.sender, signed_bytes(chain_id, envelope.kind, envelope.body), envelope.signature
    )


# --- certificates ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QuorumCertificate:
    """A quorum of votes of one kind (`commits`, else prepares) for one digest in one view."""

    commits: bool
    round: U64
    view: U32
    digest: Hash
    signers: Bitmap  # bit i = the i-th of the round's voters, sorted by id
    signatures: Annotated[tuple[Signature, ...], Many(VOTERS_MAX)]  # in the order of the bits


@dataclass(frozen=True, slots=True)
class TimeoutVote:
    """One voter's timeout inside a timeout certificate."""

    sender: PeerId
    high_view: I32
    high_digest: Hash
    signature: Signature


@dataclass(frozen=True, slots=True)
class TimeoutCertificate:
    """A quorum of timeouts of one view, with the quorum certificate that the highest claims."""

    round: U64
    view: U32
    votes: Annotated[tuple[TimeoutVote, ...], Many(VOTERS_MAX)]
    high: QuorumCertificate | None


# --- the value agreed on -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """A contribution that goes into the update."""

    peer: PeerId
    blob_hash: Hash
    size: U32


@dataclass(frozen=True, slots=True)
class Refused:
    """A contribution that does not, and why (see `refusals`)."""

    peer: PeerId
    reason: U8


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two statements signed by one key that an honest peer never signs both."""

    first: Envelope
    second: Envelope


@dataclass(frozen=True, slots=True)
class FalseHolding:
    """An attestation that says OK for a contribution that does not decode; see `trials`."""

    attestation: Envelope
    author: PeerId
    blob_hash: Hash
    size: U32


Evidence = Annotated[Contradiction | FalseHolding, OneOf((Contradiction, FalseHolding))]


@dataclass(frozen=True, slots=True)
class Admission:
    """Admit the sender of `join`, for whom voters vouch."""

    join: Envelope
    vouchers: Annotated[tuple[Envelope, ...], Many(VOUCHERS_MAX)]


@dataclass(frozen=True, slots=True)
class Departure:
    """Let the sender of `leave` go."""

    leave: Envelope


@dataclass(frozen=True, slots=True)
class Return:
    """Let the sender of `rejoin` vote again."""

    rejoin: Envelope


@dataclass(frozen=True, slots=True)
class Eviction:
    """Evict and ban the peer that the evidence convicts."""

    evidence: Evidence


Operation = Annotated[
    Admission | Departure | Eviction | Return, OneOf((Admission, Departure, Eviction, Return))
]


@dataclass(frozen=True)
class Header:
    """What one round decides. No view, leader or signature is in it: its digest is stable."""

    version: U16
    round: U64
    parent: Hash
    members_hash: Hash
    next_members_hash: Hash
    parameters_hash: Hash
    builder: PeerId
    attesters: Bitmap
    attestations_hash: Hash
    contributions: Annotated[tuple[Accepted, ...], Many(CONTRIBUTIONS_MAX)]
    refused: Annotated[tuple[Refused, ...], Many(CONTRIBUTIONS_MAX)]
    operations: Annotated[tuple[Operation, ...], Many(OPERATIONS_MAX)]
    reveal: Hash
    beacon: Hash
    state_root: Hash

    @cached_property
    def digest(self) -> bytes:
        """What is voted on, and what the next round names as parent."""
        return hash_of("header", encode(self))


# --- packets: what a connection carries --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """A contribution's commitment, an attestation, or a vote."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Proposed:
    """A header with the attestations it rests on and, above view 0, what justifies it."""

    envelope: Envelope
    header: Header
    attestations: Annotated[tuple[Envelope, ...], Many(VOTERS_MAX)]
    justify: TimeoutCertificate | None


@dataclass(frozen=True, slots=True)
class TimedOut:
    """A timeout with the quorum certificate that its `high_view` claims."""

    envelope: Envelope
    high: QuorumCertificate | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A quorum of prepares, forwarded."""

    certificate: QuorumCertificate


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A quorum of timeouts, forwarded."""

    certificate: TimeoutCertificate


@dataclass(frozen=True, slots=True)
class Certified:
    """A decided header with its certificate."""

    header: Header
    certificate: QuorumCertificate


@dataclass(frozen=True, slots=True)
class Hello:
    """The first packet each way: version, chain, the sender's tip, and where it is reached."""

    version: U16
    chain_id: Hash
    tip: U64
    record: Envelope | None


@dataclass(frozen=True, slots=True)
class AskHeaders:
    """Please send certified headers from this round on."""

    first_round: U64


@dataclass(frozen=True, slots=True)
class Headers:
    """Certified headers in order, and the round the sender's chain ends at."""

    items: Annotated[tuple[Certified, ...], Many(HEADERS_MAX)]
    tip: U64


@dataclass(frozen=True, slots=True)
class AskProposed:
    """Please send the header with this digest and the attestations it rests on."""

    round: U64
    digest: Hash


@dataclass(frozen=True, slots=True)
class HeaderBody:
    """The answer to AskProposed."""

    header: Header
    attestations: Annotated[tuple[Envelope, ...], Many(VOTERS_MAX)]


@dataclass(frozen=True, slots=True)
class AskSaid:
    """Please send the statement of this kind that this peer signed for this slot."""

    peer: PeerId
    kind: U8
    round: U64
    view: U32


@dataclass(frozen=True, slots=True)
class AskPeers:
    """Please send some peer records."""

    count: U8


@dataclass(frozen=True, slots=True)
class Peers:
    """Signed peer records."""

    records: Annotated[tuple[Envelope, ...], Many(RECORDS_MAX)]


@dataclass(frozen=True, slots=True)
class Requested:
    """A membership operation for some future header: a join with vouchers, a leave, evidence."""

    operation: Operation


Packet = (
    Said | Proposed | TimedOut | Prepared | GaveUp | Certified | Hello | AskHeaders | Headers
    | AskProposed | HeaderBody | AskSaid | AskPeers | Peers | Requested | AskGenesis | GenesisBytes
    | AskBase | BaseOf | Present | Presented | Farewell | AskAbout | About | ReachedBack | Sample
    | Sampled
)  # fmt: skip
PACKETS: tuple[type, ...] = get_args(Packet)  # a packet's kind is its place here


def pack(packet: Packet) -> bytes:
    """Return the frame of a packet: its kind, then its canonical bytes."""
    return bytes((PACKETS.index(type(packet)),)) + encode(packet)


def greeting_version(frame: bytes) -> int | None:
    """Return the protocol of a greeting, which in every protocol is the first thing in it."""
    is_greeting = frame[:1] == bytes((PACKETS.index(Hello),)) and len(frame) >= 3
    return int.from_bytes(frame[1:3], "little") if is_greeting else None


def unpack(frame: bytes) -> Packet:
    """Return the packet in a frame; raises MalformedError on anything else."""
    if not 1 <= len(frame) <= PACKET_SIZE_MAX:
        raise MalformedError("frame of a forbidden length")
    if frame[0] >= len(PACKETS):
        raise MalformedError("unknown packet")
    return decode(PACKETS[frame[0]], frame[1:])
