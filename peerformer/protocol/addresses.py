"""Which addresses one operator could easily hold together: the groups that bound an attacker.

Many addresses of one network cost little, addresses in many networks cost much. So tables and
connections are shared out by group: the /16 of an IPv4 address, the /32 of an IPv6 address, the
last two labels of a name (Heilman et al., USENIX Security 2015). An address that only a machine
or a home network can reach is a group of its own, port and all: the peers of a swarm on one machine
must not count as one operator, and whoever can listen there is inside already. Nothing is resolved
and nothing is dialled here.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address

LOCAL_SUFFIXES = ("local", "localhost", "internal", "lan", "home.arpa")


def _split(address: str) -> tuple[str, IPv4Address | IPv6Address | None]:
    """Return the host of "host:port" or "[v6]:port", and its number if it is one."""
    host = address.rpartition(":")[0].strip("[]").rstrip(".").lower()
    try:
        number = ip_address(host)
    except ValueError:
        return host, None
    mapped = number.ipv4_mapped if isinstance(number, IPv6Address) else None
    return host, mapped or number


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
