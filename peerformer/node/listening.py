"""Where a peer listens, and the addresses that others are told.

Several hosts may be given, all at one port: 0.0.0.0 is every IPv4 address of this machine and :: is
every IPv6 one, each alone, so that both are asked for by name. Neither means anything to others:
they are told the addresses of the machine's interfaces instead.
"""

import errno
import socket
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address, ip_network

import psutil

from peerformer.errors import SwarmError
from peerformer.node.dialling import joined

BACKLOG = 256
TAKEN = (errno.EADDRINUSE, errno.EACCES)
PORT_TRIES = 16  # to find one port that is free at all hosts, if any will do


def open_listeners(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listen on all hosts at one port; 0 takes one that is free.

    Raises:
        SwarmError: if the port is taken or an address is not this machine's.
    """
    for last in range(1, PORT_TRIES + 1):
        opened: list[socket.socket] = []
        try:
            for host in hosts:
                chosen = opened[0].getsockname()[1] if opened else port
                opened.append(_opened(host, chosen))
        except SwarmError:
            for listener in opened:
                listener.close()
            if port or not opened or last == PORT_TRIES:
                raise
        else:
            break
    return opened


def _opened(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host.strip("[]"), port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        taken = getattr(error, "errno", None) in TAKEN
        raise SwarmError(
            f"cannot listen on {host}, port {port}",
            why=getattr(error, "strerror", None) or str(error),
            hint=f"stop what uses it, or choose another: --port {port + 1}"
            if taken
            else "--host takes an address of this machine, or 0.0.0.0 and :: for all of them",
        ) from error
    listener.setblocking(False)
    return listener


def source_of(host: str) -> str:
    """Return what counts as one source: an IPv4 address, or the /64 that one IPv6 host has."""
    try:
        number = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(number, IPv6Address) and not number.is_loopback:
        return str(ip_network((number, 64), strict=False))
    return host


def told_addresses(listening: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """Return the addresses at which others may find this machine, in the order to be tried."""
    told: dict[str, None] = {}
    for host, port in listening:
        number = ip_address(host.partition("%")[0])
        hosts = _interface_hosts(number.version) if number.is_unspecified else [host]
        told |= dict.fromkeys(joined(each, port) for each in hosts)
    return tuple(told)


def _interface_hosts(version: int) -> list[str]:
    """Return this machine's addresses of one version; loopback only if there is nothing else."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == family
        and not ip_address(address.address.partition("%")[0]).is_link_local
    ]
    abroad = [host for host in found if not ip_address(host).is_loopback]
    public_first = sorted(abroad, key=lambda host: ip_address(host).is_private)
    return public_first or found[:1] or ["::1" if version == 6 else "127.0.0.1"]
