"""How one peer is reached and what it lends to others: what an operator may choose.

Plain values, passed in when a peer is assembled; what they mean is the business of those who read
them.
"""

from dataclasses import dataclass

from peerformer.node.certificate import Group
from peerformer.node.limits import RelayLimits


@dataclass(frozen=True, slots=True)
class Reach:
    """What a peer does about the network beyond listening."""

    upload_bytes_per_second: float | None = None  # of everything it sends; None: no cap
    announced: tuple[str, ...] = ()  # addresses that others are told first: a forwarded port
    behind_nat: bool = False  # nobody can dial it: it needs a relay
    relay: RelayLimits | None = None  # what it relays for others; None: nothing
    lan: bool = False  # announces itself on the local network, and finds others there
    group: Group | None = None  # the private group that it keeps to; None: anybody may connect
    iroh: bool = False  # listens and dials by iroh too
    iroh_relay: str | None = None  # URL of the iroh relay through which holes are punched
