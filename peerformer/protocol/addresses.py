"""Which addresses one operator could easily hold together: the groups that bound an attacker.

Many addresses of one network cost little, addresses in many networks cost much. So tables and
connections are shared out by group: the /16 of an IPv4 address, the /32 of an IPv6 address, the
last two labels of a name (Heilman et al., USENIX Security 2015). An address that only a machine
or a home network can reach is a group of its own, port and all: the peers of a swarm on one machine
must not count as one operator, and whoever can listen there is inside already. Nothing is resolved
and nothing is dialled here.

An address of a record is one of four things: `HOST:PORT`, where the peer is dialled;
`relay:HOST:PORT/PEER`, where a relay passes calls on to the peer of that id, in 64 hex digits;
`iroh:PLACE/PEER`, where it is reached by iroh, at a UDP address or the URL of an iroh relay; and
`relay:HOST:PORT`, by which a peer says that it relays for others there.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

RELAY, IROH = "relay:", "iroh:"
PEER_DIGITS = 64
KEPT_MAX = 4_096  # short ones: the same few are asked about again and again
LOCAL_SUFFIXES = ("local", "localhost", "internal", "lan", "home.arpa")


def relayed_address(relay: str, peer: bytes) -> str:
    """Return where a relay at "host:port" passes calls on to a peer."""
    return f"{RELAY}{relay}/{peer.hex()}"


def iroh_address(place: str, peer: bytes) -> str:
    """Return where a peer is reached by iroh."""
    return f"{IROH}{place}/{peer.hex()}"


def through_relay(address: str) -> tuple[str, bytes] | None:
    """Return the relay and the peer of a relayed address; None for any other."""
    return _through(RELAY, address)


def through_iroh(address: str) -> tuple[str, bytes] | None:
    """Return the place and the peer of an iroh address; None for any other."""
    return _through(IROH, address)


def _through(kind: str, address: str) -> tuple[str, bytes] | None:
    place, slash, digits = address.removeprefix(kind).rpartition("/")
    if not address.startswith(kind) or not slash or len(digits) != PEER_DIGITS:
        return None
    try:
        return place, bytes.fromhex(digits)
    except ValueError:
        return None


def relay_offer(address: str) -> str:
    """Return the address by which a peer says that it relays at "host:port"."""
    return RELAY + address


def offered_relay(address: str) -> str | None:
    """Return where a relay is offered, if that is what this address says."""
    relay = address.removeprefix(RELAY)
    return relay if address.startswith(RELAY) and "/" not in relay else None


def leads_to(address: str, peer: bytes) -> bool:
    """Whether dialling an address of a peer's record may reach it."""
    through = through_relay(address) or through_iroh(address)
    return not address.startswith((RELAY, IROH)) or (through is not None and through[1] == peer)


@lru_cache(maxsize=KEPT_MAX)
def _split(address: str) -> tuple[str, IPv4Address | IPv6Address | None]:
    """Return the host of "host:port" or "[v6]:port", and its number if it is one."""
    place = address.removeprefix(RELAY).removeprefix(IROH).removeprefix("https://")
    place = place.partition("/")[0]
    before, colon, _ = place.rpartition(":")
    host = (before if colon else place).strip("[]").rstrip(".").lower()
    try:
        number = ip_address(host)
    except ValueError:
        return host, None
    mapped = number.ipv4_mapped if isinstance(number, IPv6Address) else None
    return host, mapped or number


@lru_cache(maxsize=KEPT_MAX)
def is_local(address: str) -> bool:
    """Whether an address means something on one machine or in one home network only."""
    host, number = _split(address)
    if number is not None:
        return number.is_private or number.is_link_local or number.is_unspecified
    suffixes = tuple(f".{suffix}" for suffix in LOCAL_SUFFIXES)
    return "." not in host or f".{host}".endswith(suffixes)


def group_of(address: str) -> str:
    """Return the group that an address to dial belongs to."""
    return f"local {address}" if is_local(address) else _network_of(address)


def source_group_of(address: str) -> str:
    """Return the group of whoever speaks from an address.

    The port of a connection that came in means nothing, so it does not count: a local machine is
    one source, however often it connects.
    """
    return f"local {_split(address)[0]}" if is_local(address) else _network_of(address)


def _network_of(address: str) -> str:
    host, number = _split(address)
    match number:
        case IPv4Address():
            return f"ipv4 {number.packed[:2].hex()}"
        case IPv6Address():
            return f"ipv6 {number.packed[:4].hex()}"
    return f"name {'.'.join(host.split('.')[-2:])}"
