"""What a swarm is founded on. Its hash is the chain id; every peer holds the same bytes.

The machine reads only the integers. How to train (model, optimizer, codec, rule) stands in
`recipe`, canonical JSON that the protocol carries and binds but never opens.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from peerformer.protocol.codec import (
    U8,
    U16,
    U32,
    U64,
    AtMost,
    Hash,
    MalformedError,
    Many,
    PeerId,
    decode,
    encode,
)
from peerformer.protocol.identity import hash_of
from peerformer.protocol.messages import MEMBERS_MAX, RECIPE_SIZE_MAX, VOUCHERS_MAX

ADMISSION_CLOSED, ADMISSION_OPEN, ADMISSION_INVITE = 0, 1, 2
RECORD_EXTRA_BYTES = 1 << 20  # names of tensors, steps
STALENESS_MAX = 1  # an update two rounds old does more harm than an idle machine


@dataclass(frozen=True, slots=True)
class Founder:
    """A voter of the first round, with the anchor of its hash chain."""

    peer: PeerId
    chain_anchor: Hash


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers that every peer must apply alike."""

    contributions_min: U16 = 2  # K_min: fewer make a null round (or as many as there are voters)
    contributions_max: U16 = 32  # K_max
    harm_micronats: U32 = 500  # theta
    scored_by_all_max: U16 = 16  # up to so many voters, everybody scores everything
    admission: U8 = ADMISSION_CLOSED
    vouchers: U8 = 1  # k_v
    joins_per_epoch: U16 = 0  # most admissions in 100 rounds; 0: max(1, n // 10)
    train_milliseconds_max: U32 = 600_000  # the longest local training of a round
    joins_per_voucher: U16 = 2  # most admissions in 100 rounds on one voter's vouchers; 0: any
    idle_rounds_max: U16 = 30  # R_idle: a voter that attests in none of so many is suspended; 0: no
    committee_size: U16 = 64  # above so many voters, so many of them are drawn to vote
    committee_rounds: U16 = 100  # the rounds that a committee serves
    staleness: U8 = 0  # so many rounds ahead of the vote a peer may train
    audit_permille: U16 = 0  # p_audit: so many of 1,000 contributions are repeated by auditors


@dataclass(frozen=True)
class Genesis:
    """The founding record of a swarm."""

    version: U16
    name: Annotated[bytes, AtMost(64)]
    recipe: Annotated[bytes, AtMost(RECIPE_SIZE_MAX)]
    tokenizer_hash: Hash
    tokenizer_size: U32
    validation_hash: Hash
    validation_size: U32
    state_root: Hash
    state_size: U64
    blob_size_max: U32
    limits: Limits
    founders: Annotated[tuple[Founder, ...], Many(MEMBERS_MAX)]

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Genesis":
        """Read a genesis; raises MalformedError on anything that cannot found a swarm."""
        genesis = decode(cls, data)
        peers = [founder.peer for founder in genesis.founders]
        if not peers or peers != sorted(set(peers)):
            raise MalformedError("founders are not sorted, repeated or missing")
        limits = genesis.limits
        if not 1 <= limits.contributions_min <= limits.contributions_max:
            raise MalformedError("limits that no round can meet")
        if not 1 <= limits.vouchers <= VOUCHERS_MAX:
            raise MalformedError("limits that no admission can meet")
        if limits.admission > ADMISSION_INVITE:
            raise MalformedError("an admission of no kind")
        if limits.staleness > STALENESS_MAX:
            raise MalformedError("training further ahead than anybody can")
        if limits.audit_permille > (0 if limits.staleness else 1_000):
            raise MalformedError("audits that nobody can do")
        return genesis

    @property
    def record_size_max(self) -> int:
        """The most bytes of a training's record; 0 in a swarm without audits.

        That of AdamW and the residual has 12 bytes a parameter, a state 8.
        """
        return 2 * self.state_size + RECORD_EXTRA_BYTES if self.limits.audit_permille else 0

    @cached_property
    def chain_id(self) -> bytes:
        """The hash that names this run."""
        return hash_of("genesis", encode(self))

    @cached_property
    def parameters_hash(self) -> bytes:
        """The hash of what binds every round's arithmetic."""
        return hash_of("parameters", self.recipe, encode(self.limits))
