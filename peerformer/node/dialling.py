"""Reaching a place that has several addresses: tried a moment apart, the first that answers wins.

A name may mean an IPv6 and an IPv4 address of which one leads nowhere, and so may a peer's record;
waiting for each in turn would take a handshake's whole time limit every time (RFC 8305, "Happy
eyeballs"). It knows TCP and addresses, not TLS and not peers.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from ipaddress import ip_address
from typing import Any, TypeVar

STAGGER_SECONDS = 0.25  # RFC 8305, section 5: the delay between two attempts
RESOLVED_MAX = 8  # addresses of one name that are tried

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

T = TypeVar("T")
Place = tuple[int, tuple[Any, ...]]  # a family and an address of it


class DialError(Exception):
    """A peer that could not be reached, or was not the one meant; the message says why."""


def joined(host: str, port: int) -> str:
    """Return host and port as one text: "host:port", or "[v6]:port"."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parted(address: str) -> tuple[str, int]:
    """Return the host and port of "host:port" or "[v6]:port".

    Raises:
        DialError: if it is neither.
    """
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or not port.isascii() or not port.isdecimal() or (":" in bare) == (bare == host):
        raise DialError(f"{address!r:.80} is not host:port, nor [IPv6]:port")
    if not 0 < int(port) <= 65_535:
        raise DialError(f"{port:.20} is not a port")
    return bare, int(port)


async def first_of(
    attempts: Sequence[Callable[[], Awaitable[T]]], discard: Callable[[T], None]
) -> T:
    """Begin the attempts a moment apart, the next at once if one fails; return the first result.

    Results that come too late are given to `discard`.

    Raises:
        DialError: if all fail; with the reasons of all, each once.
    """
    waiting = list(attempts)
    running: set[asyncio.Task[T]] = set()
    reasons: dict[str, None] = {}
    winner: asyncio.Task[T] | None = None
    try:
        while winner is None:
            if waiting:
                running.add(asyncio.ensure_future(_awaited(waiting.pop(0))))
            if not running:
                raise DialError("; ".join(reasons) or "there is no address")
            done, _ = await asyncio.wait(
                running,
                timeout=STAGGER_SECONDS if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                error = task.exception()
                if error is None:
                    winner = winner or task
                    continue
                running.discard(task)
                if not isinstance(error, DialError):
                    raise error
                reasons[str(error)] = None
        return winner.result()
    finally:
        for task in running - {winner}:
            task.cancel()
        for late in await asyncio.gather(*(running - {winner}), return_exceptions=True):
            if not isinstance(late, BaseException):
                discard(late)


async def _awaited(attempt: Callable[[], Awaitable[T]]) -> T:
    return await attempt()


async def connected_socket(address: str) -> socket.socket:
    """Return a TCP connection to "host:port" or "[v6]:port", whatever the host resolves to.

    Raises:
        DialError: if nobody answers.
    """
    host, port = parted(address)
    places = _interleaved(await _resolved(host, port))[:RESOLVED_MAX]
    attempts = [partial(_connect, family, where) for family, where in places]
    return await first_of(attempts, lambda late: late.close())


async def _resolved(host: str, port: int) -> list[Place]:
    try:
        number = ip_address(host)
        if number.version == 4 or not number.scope_id:  # a zone's number only the system knows
            return [(FAMILIES[number.version], (host, port))]
    except ValueError:
        pass  # a name
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DialError(f"{host:.80} cannot be resolved") from error
    return list(dict.fromkeys((family, where) for family, _, _, _, where in found))


def _interleaved(places: list[Place]) -> list[Place]:
    """Alternate the families, beginning with the one that the resolver prefers."""
    if not places:
        return []
    first = [place for place in places if place[0] == places[0][0]]
    other = [place for place in places if place[0] != places[0][0]]
    mixed: list[Place] = []
    while first or other:
        mixed += [first.pop(0)] if first else []
        mixed += [other.pop(0)] if other else []
    return mixed


async def _connect(family: int, where: tuple[Any, ...]) -> socket.socket:
    tcp = socket.socket(family, socket.SOCK_STREAM)
    try:
        tcp.setblocking(False)
        with contextlib.suppress(OSError):
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(tcp, where)
    except OSError as error:
        tcp.close()
        raise DialError(os.strerror(error.errno) if error.errno else str(error)) from error
    except BaseException:
        tcp.close()
        raise
    return tcp
