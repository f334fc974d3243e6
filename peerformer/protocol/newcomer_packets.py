"""The packets of a newcomer: for the genesis, a base to begin at, an invitation, an examination.

They belong to the table of `messages`, which knows their place among the packets.
"""

from dataclasses import dataclass
from typing import Annotated

from peerformer.protocol.codec import U8, U16, U32, U64, AtMost

GENESIS_SIZE_MAX = 593_920  # a recipe of 64 KiB, 8,192 founders of 64 bytes, the rest 4 KiB
BASE_SIZE_MAX = 3 * 1024 * 1024  # more members make no base; a packet has 4 MiB
TICKET_SIZE_MAX = 2_048  # four places of 162 bytes and some 250 more
VERSION_SIZE_MAX = 32
WORDS_SIZE_MAX = 128
SAMPLE_SIZE_MAX = 48 * 1024  # a frame of a stranger has 64 KiB

OTHER_VERSION, OTHER_SWARM, BANNED = 1, 2, 3  # why a peer is sent away


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


@dataclass(frozen=True, slots=True)
class Present:
    """Here is a ticket of yours: let me in. Or, if this only asks: would you?"""

    ticket: Annotated[bytes, AtMost(TICKET_SIZE_MAX)]  # a canonical `ticket.Ticket`
    only_asks: bool


@dataclass(frozen=True, slots=True)
class Presented:
    """The answer to Present: see `invitations`; and how many more may come with the ticket."""

    answer: U8
    left: U16


@dataclass(frozen=True, slots=True)
class Farewell:
    """Why I close this connection, and the software that I run, for whoever has another."""

    version: U16  # of the protocol
    software: Annotated[bytes, AtMost(VERSION_SIZE_MAX)]
    reason: U8


@dataclass(frozen=True, slots=True)
class AskAbout:
    """What time is it, what do you run, where do you see me? I listen at this port, unless 0."""

    port: U16


@dataclass(frozen=True, slots=True)
class About:
    """The answer to AskAbout: milliseconds since 1970, and where the question came from."""

    time_milliseconds: U64
    software: Annotated[bytes, AtMost(VERSION_SIZE_MAX)]
    seen_at: Annotated[bytes, AtMost(WORDS_SIZE_MAX)]


@dataclass(frozen=True, slots=True)
class ReachedBack:
    """The later answer to AskAbout with a port: whether I reached the asking key there."""

    address: Annotated[bytes, AtMost(WORDS_SIZE_MAX)]
    fault: Annotated[bytes, AtMost(WORDS_SIZE_MAX)]  # empty: I reached it


@dataclass(frozen=True, slots=True)
class Sample:
    """Bytes that mean nothing, to measure how fast they come."""

    data: Annotated[bytes, AtMost(SAMPLE_SIZE_MAX)]


@dataclass(frozen=True, slots=True)
class Sampled:
    """So many bytes of a sample have come."""

    size: U32
