"""The packets of a newcomer that has no chain yet: for the genesis, and for a base to begin at.

They belong to the table of `messages`, which knows their place among the packets.
"""

from dataclasses import dataclass
from typing import Annotated

from peerformer.protocol.codec import U8, U64, AtMost

GENESIS_SIZE_MAX = 593_920  # a recipe of 64 KiB, 8,192 founders of 64 bytes, the rest 4 KiB
BASE_SIZE_MAX = 3 * 1024 * 1024  # more members make no base; a packet has 4 MiB


@dataclass(frozen=True, slots=True)
class AskGenesis:
    """Please send the genesis; a newcomer knows only an address."""

    nonce: U8


@dataclass(frozen=True, slots=True)
class GenesisBytes:
    """The genesis, canonical; its hash is the chain id."""

    data: Annotated[bytes, AtMost(GENESIS_SIZE_MAX)]


@dataclass(frozen=True, slots=True)
class AskBase:
    """Please send a base from which the headers up to this round can be followed."""

    round: U64


@dataclass(frozen=True, slots=True)
class BaseOf:
    """The answer to AskBase: a canonical `chain.Base`, or nothing where there is none."""

    round: U64  # the one that was asked for
    data: Annotated[bytes, AtMost(BASE_SIZE_MAX)]
