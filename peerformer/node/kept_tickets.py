"""The tickets that a peer keeps on its disk until it is a member."""

from collections.abc import Sequence
from pathlib import Path

from peerformer.node.directory import PeerDirectory, write_durably
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.ticket import Ticket, line_of, parse_ticket

TICKETS_MAX = 8  # as many as an admission may take vouchers


def ticket_file(directory: PeerDirectory) -> Path:
    """Return where a peer keeps its tickets until it is a member."""
    return directory.path / "tickets"


def keep_tickets(directory: PeerDirectory, tickets: Sequence[Ticket]) -> None:
    """Keep tickets where a restarted peer finds them; whoever reads one could use it."""
    lines = "".join(f"{line_of(ticket)}\n" for ticket in tickets)
    write_durably(ticket_file(directory), lines.encode())
    ticket_file(directory).chmod(0o600)


def kept_tickets(directory: PeerDirectory) -> list[Ticket]:
    """Return the tickets kept; what is no ticket is passed over."""
    try:
        lines = ticket_file(directory).read_text().split()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines[:TICKETS_MAX]:
        try:
            found.append(parse_ticket(line))
        except MalformedError:
            continue
    return found
