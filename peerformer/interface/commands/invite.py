"""`peerformer invite`: a ticket for a newcomer, from a peer of a swarm on this machine."""

import re
import shutil
import sys
import time
from datetime import UTC, datetime
from typing import Annotated

from cyclopts import Parameter

from peerformer.errors import ConfigError, SwarmError
from peerformer.interface.passphrase import PassphraseFile, seed_of
from peerformer.node.directory import find_swarm
from peerformer.node.inviting import Terms, invitation_of, is_loopback
from peerformer.node.overview import chosen_peer
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.ticket import DAY_SECONDS, Invitation, write_ticket

DAYS_MAX = 60
USES_MAX = 1_000  # an inviter remembers each of them
UNITS = {"m": 60, "h": 3_600, "d": DAY_SECONDS}


def invite(
    run: Annotated[
        str | None, Parameter(help="Name or path; without it, the swarm used last.")
    ] = None,
    *,
    peer: Annotated[
        str | None, Parameter(help="Who invites; without it, the peer with most rounds.")
    ] = None,
    address: Annotated[
        tuple[str, ...],
        Parameter(negative=(), help="host:port where the inviter is reached from outside."),
    ] = (),
    expires: Annotated[
        str, Parameter(help="How long the ticket is good for: 30m, 24h, 14d.")
    ] = "14d",
    uses: Annotated[
        int | None,
        Parameter(help="Newcomers whom it lets in, where admission is by invitation: 1."),
    ] = None,
    qr: Annotated[bool, Parameter(negative=(), help="Print it as a QR code as well.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Print a ticket for a newcomer: one line to hand on. It names the newest decided round."""
    terms = Terms(seconds_of(expires), uses)
    if uses is not None and not 1 <= uses <= USES_MAX:
        raise ConfigError(f"--uses must be between 1 and {USES_MAX}", why=f"given: {uses}")
    swarm = find_swarm(run)
    directory = chosen_peer(swarm, peer)
    if not directory.key.is_file():
        raise SwarmError("this peer has no key yet", where=str(directory.path))
    keys = KeyPair.from_seed(seed_of(directory.key, passphrase_file))
    invitation = invitation_of(swarm, directory, keys, address, time.time(), terms)
    ticket = write_ticket(keys, invitation)
    for line in remarks(invitation, swarm.genesis()):
        print(line, file=sys.stderr)
    if qr:
        _print_qr(ticket)
    print(ticket)


def seconds_of(text: str) -> float:
    """Return the length of time in a text such as 30m, 24h or 7d.

    Raises:
        ConfigError: if it is none, or no ticket should be good for so long.
    """
    match = re.fullmatch(r"([0-9]{1,6})([mhd])", text.strip())
    seconds = int(match[1]) * UNITS[match[2]] if match else 0
    if not 0 < seconds <= DAYS_MAX * DAY_SECONDS:
        raise ConfigError(
            f"--expires takes 1m to {DAYS_MAX}d",
            why=f"given: {text}",
            hint="minutes, hours or days: --expires 30m, --expires 24h, --expires 7d",
        )
    return seconds


def remarks(invitation: Invitation, genesis: Genesis) -> list[str]:
    """Return what whoever hands a ticket on should know of it."""
    until = datetime.fromtimestamp(invitation.expires, UTC)
    places = [place.address.decode() for place in invitation.places]
    admits = "" if not invitation.uses else f", for {invitation.uses} newcomers"
    found = [f"good until  {until:%Y-%m-%d %H:%M} UTC{admits}, by way of {', '.join(places)}"]
    quota = genesis.limits.joins_per_voucher
    if quota and invitation.uses > quota:
        found.append(
            f"note        this swarm admits {quota} in 100 rounds on one voter's word: more wait"
        )
    if invitation.uses:
        found.append("note        keep this peer running: it lets them in, when they come")
    if genesis.limits.vouchers > 1:
        count = genesis.limits.vouchers
        found.append(f"note        it takes tickets of {count} voters: peerformer join A B")
    if all(is_loopback(place) for place in places):
        found.append(
            "warning     this ticket works on this machine only: its peers listen on 127.0.0.1\n"
            "  try: peerformer node --host 0.0.0.0, or name where they are reached: --address H:P"
        )
    return found


def _print_qr(ticket: str) -> None:
    from peerformer.interface.qr import qr_lines

    lines = qr_lines(ticket)
    columns = shutil.get_terminal_size().columns
    if sys.stdout.isatty() and columns < len(lines[0]):
        wanted = f"{len(lines[0])} columns and {len(lines)} lines"
        print(f"note        the code needs {wanted}, here are {columns}", file=sys.stderr)
    print("\n".join(lines))
