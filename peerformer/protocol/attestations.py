"""What a voter says of a round's contributions: which it holds, what they do, which it repeated."""

from dataclasses import dataclass
from typing import Annotated

from peerformer.protocol.codec import I32, U32, U64, Hash, Many, PeerId

CONTRIBUTIONS_MAX = 256


@dataclass(frozen=True, slots=True)
class Judgement:
    """One contribution as one voter saw it; `score` is loss before minus after, in micro-nats."""

    peer: PeerId
    blob_hash: Hash
    size: U32
    holds: bool  # I hold it, it decodes, and I serve it
    score: I32 | None


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether an auditor could repeat the training of a peer; see `audits`."""

    peer: PeerId
    passed: bool


@dataclass(frozen=True, slots=True)
class Attestation:
    """What one voter holds of a round's contributions, what it thinks of them, and its audits."""

    round: U64
    judgements: Annotated[tuple[Judgement, ...], Many(CONTRIBUTIONS_MAX)]
    findings: Annotated[tuple[Finding, ...], Many(CONTRIBUTIONS_MAX)] = ()
