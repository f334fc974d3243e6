"""An invitation as a line of text: which swarm, a recent round to trust, and where to connect.

Whoever opens it trusts whoever gave it, and no more than that: the round that it names is the
checkpoint, and the keys are those that must answer at the addresses. The signature says whose word
it is, and shows every slip of the pen.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated

from peerformer.protocol.checkpoint import Checkpoint
from peerformer.protocol.codec import (
    U16,
    U64,
    AtMost,
    Hash,
    MalformedError,
    Many,
    PeerId,
    Signature,
    decode,
    encode,
)
from peerformer.protocol.identity import KeyPair, verify
from peerformer.protocol.messages import ADDRESS_SIZE_MAX

INVITATION_TAG = b"peerformer invitation 1"
PREFIX = "peerformer1"
PLACES_MAX = 4
TEXT_LENGTH_MAX = 4_096
DAY_SECONDS = 86_400
CLOCK_SECONDS = DAY_SECONDS  # the inviter's clock may be so far ahead of mine


class OutOfTimeError(MalformedError):
    """A ticket that is good in itself, but not now: it is late, or a clock is wrong."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer is reached, and the key that must answer there."""

    peer: PeerId
    address: Annotated[bytes, AtMost(ADDRESS_SIZE_MAX)]


@dataclass(frozen=True, slots=True)
class Invitation:
    """What an inviter signs; the times in seconds since 1970."""

    chain_id: Hash
    checkpoint: Checkpoint
    issued: U64
    expires: U64
    places: Annotated[tuple[Place, ...], Many(PLACES_MAX)]
    uses: U16 = 0  # newcomers whom its inviter vouches for; 0 where it vouches for anybody
    serial: U64 = 0  # drawn at random: two tickets of one second are two


@dataclass(frozen=True, slots=True)
class Ticket:
    """A signed invitation."""

    invitation: Invitation
    inviter: PeerId
    signature: Signature


def write_ticket(keys: KeyPair, invitation: Invitation) -> str:
    """Return the invitation, signed, as one line."""
    return line_of(sign_ticket(keys, invitation))


def sign_ticket(keys: KeyPair, invitation: Invitation) -> Ticket:
    """Return the invitation, signed."""
    signature = keys.sign(INVITATION_TAG + encode(invitation))
    return Ticket(invitation, keys.peer_id, signature)


def line_of(ticket: Ticket) -> str:
    """Return a ticket as one line."""
    data = encode(ticket)
    return PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")


def is_signed(ticket: Ticket) -> bool:
    """Tell whether the inviter signed this invitation; never raises."""
    signed = INVITATION_TAG + encode(ticket.invitation)
    return verify(ticket.inviter, signed, ticket.signature)


def parse_ticket(text: str) -> Ticket:
    """Return the ticket in a line, whatever the time is.

    Args:
        text: the line; blanks inside it are left out, as a mail program may have broken it.

    Raises:
        MalformedError: if it is no ticket, or damaged; the message is for a person.
    """
    line = "".join(text.split())
    if not line.startswith(PREFIX) or len(line) > TEXT_LENGTH_MAX:
        raise MalformedError(f"a ticket is one line that begins with {PREFIX}")
    coded = line.removeprefix(PREFIX)
    try:
        data = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        ticket = decode(Ticket, data)
        for place in ticket.invitation.places:
            place.address.decode("ascii")
    except (ValueError, binascii.Error, MalformedError) as error:
        raise MalformedError("the ticket is damaged: it is not whole") from error
    if not is_signed(ticket):
        raise MalformedError("the ticket is damaged: its signature does not fit")
    return ticket


def read_ticket(text: str, now: float) -> Ticket:
    """Return the ticket in a line, if it is good now.

    Args:
        text: the line; see `parse_ticket`.
        now: seconds since 1970.

    Raises:
        MalformedError: if it is no ticket, damaged, or out of date (OutOfTimeError); the message
        is for a person.
    """
    ticket = parse_ticket(text)
    invitation = ticket.invitation
    if now >= invitation.expires:
        raise OutOfTimeError(f"the ticket has expired, {span(now - invitation.expires)} ago")
    if invitation.issued > now + CLOCK_SECONDS:
        raise OutOfTimeError("the ticket was issued in the future, by this machine's clock")
    return ticket


def span(seconds: float) -> str:
    """Return a length of time in words, in the unit that suits it."""
    for unit, size in (("days", DAY_SECONDS), ("hours", 3_600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
