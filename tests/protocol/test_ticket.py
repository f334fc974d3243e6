"""A ticket says whose word it is, and every damage to it is noticed."""

from dataclasses import replace
from random import Random

import pytest

from peerformer.protocol.checkpoint import Checkpoint
from peerformer.protocol.codec import MalformedError, encode
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.ticket import (
    DAY_SECONDS,
    PREFIX,
    Invitation,
    Place,
    read_ticket,
    write_ticket,
)

KEYS = KeyPair.from_seed(b"\1" * 32)
INVITATION = Invitation(
    b"\2" * 32,
    Checkpoint(1_234, b"\3" * 32, b"\4" * 32),
    issued=1_000_000,
    expires=1_000_000 + 14 * DAY_SECONDS,
    places=(Place(KEYS.peer_id, b"127.0.0.1:8888"), Place(b"\5" * 32, b"[::1]:8889")),
)
NOW = 1_000_100.0


def test_a_ticket_is_one_line_that_says_what_was_signed() -> None:
    line = write_ticket(KEYS, INVITATION)
    assert line.startswith(PREFIX) and len(line.split()) == 1 and len(line) < 700
    ticket = read_ticket(line, NOW)
    assert ticket.invitation == INVITATION and ticket.inviter == KEYS.peer_id
    assert read_ticket(f"  {line[:80]}\n {line[80:]}\n", NOW) == ticket  # as a mail has broken it


def test_every_slip_of_the_pen_is_noticed() -> None:
    line, random = write_ticket(KEYS, INVITATION), Random(1)
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
    for place in range(len(line)):
        slip = random.choice(alphabet.replace(line[place], ""))
        for wrong in (
            line[:place] + slip + line[place + 1 :],
            line[:place] + line[place + 1 :],
            line[:place],
        ):
            with pytest.raises(MalformedError, match=r"ticket is damaged|begins with"):
                read_ticket(wrong, NOW)


def test_a_ticket_out_of_its_time_is_refused_in_words() -> None:
    line = write_ticket(KEYS, INVITATION)
    with pytest.raises(MalformedError, match=r"expired, 2\.0 days ago"):
        read_ticket(line, INVITATION.expires + 2 * DAY_SECONDS)
    with pytest.raises(MalformedError, match="expired"):
        read_ticket(line, INVITATION.expires)
    with pytest.raises(MalformedError, match="issued in the future"):
        read_ticket(line, INVITATION.issued - 2 * DAY_SECONDS)


def test_a_ticket_is_not_signed_by_a_statement_of_the_protocol() -> None:
    """The tag: the same bytes signed without it are no ticket."""
    good = read_ticket(write_ticket(KEYS, INVITATION), NOW)
    import base64

    bare = replace(good, signature=KEYS.sign(encode(INVITATION)))
    line = PREFIX + base64.urlsafe_b64encode(encode(bare)).decode().rstrip("=")
    with pytest.raises(MalformedError, match="signature does not fit"):
        read_ticket(line, NOW)
