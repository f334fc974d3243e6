"""Peers of one local network find each other without an address: multicast DNS, by `zeroconf`.

A peer announces its swarm's chain, its key and where it listens (RFC 6762 and 6763, service
`_peerformer._tcp`), and dials those of the same chain. Anybody on the network may announce
anything, so what is heard is a hint: only local addresses are taken, so many at most, and whoever
answers there must hold the announced key. A network tells everybody in it who takes part; so this
is off unless asked for.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from peerformer.errors import ConfigError, SwarmError
from peerformer.node.dialling import joined, parted
from peerformer.protocol.addresses import RELAY, is_local
from peerformer.protocol.backoff import Backoff
from peerformer.protocol.identity import KEY_SIZE_BYTES, name_of

SERVICE = "_peerformer._tcp.local."
CHAIN, PEER, SWARM = b"chain", b"peer", b"swarm"
FOUND_MAX = 64  # announcements kept; who announces more is ignored
SWARM_NAME_MAX = 64
LOOK_SECONDS = 1.0
RESOLVE_MILLISECONDS = 3_000


@dataclass(frozen=True, slots=True)
class LanPeer:
    """What somebody on the network announces: nothing of it is proved."""

    swarm: str
    chain_id: bytes
    peer: bytes
    addresses: tuple[str, ...]

    @classmethod
    def read(
        cls, properties: Mapping[bytes, bytes | None], hosts: Sequence[str], port: int | None
    ) -> "LanPeer | None":
        """Return what an announcement says, or None if it is not one of ours."""
        try:
            chain, peer = (bytes.fromhex((properties[k] or b"").decode()) for k in (CHAIN, PEER))
        except (KeyError, ValueError):
            return None
        addresses = tuple(joined(host, port or 0) for host in hosts)
        local = tuple(address for address in addresses if is_local(address))
        if len(chain) != KEY_SIZE_BYTES or len(peer) != KEY_SIZE_BYTES or not local or not port:
            return None
        swarm = (properties.get(SWARM) or b"").decode(errors="replace")
        readable = "".join(letter for letter in swarm if letter.isprintable())
        return cls(readable[:SWARM_NAME_MAX], chain, peer, local)


@dataclass(slots=True)
class Lan:
    """One presence on the local network: heard, and announced if it has something to say."""

    hosts: tuple[str, ...]  # whose interfaces are spoken on
    found: dict[str, LanPeer] = field(default_factory=dict)  # by the name of the announcement
    _zeroconf: Any = None
    _browser: Any = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def open(self) -> None:
        """Begin to listen.

        Raises:
            ConfigError: if the library is missing.
            SwarmError: if the network does not let it.
        """
        aio, zc = _zeroconf()
        every = any(ip_address(host.partition("%")[0]).is_unspecified for host in self.hosts)
        interfaces = zc.InterfaceChoice.All if every else list(self.hosts)
        try:
            self._zeroconf = aio.AsyncZeroconf(interfaces=interfaces)
        except (OSError, RuntimeError) as error:
            raise SwarmError(
                "this machine's network does not let peers be looked for",
                where=", ".join(self.hosts),
                why=str(error),
                hint="leave --lan out, and give --bootstrap HOST:PORT",
            ) from error
        self._browser = aio.AsyncServiceBrowser(
            self._zeroconf.zeroconf, SERVICE, handlers=[self._on_change]
        )

    def _on_change(self, zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        if state_change.name == "Removed":
            self.found.pop(name, None)
        elif name in self.found or len(self.found) < FOUND_MAX:
            task = asyncio.ensure_future(self._resolve(service_type, name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _resolve(self, service_type: str, name: str) -> None:
        aio, _ = _zeroconf()
        info = aio.AsyncServiceInfo(service_type, name)
        if not await info.async_request(self._zeroconf.zeroconf, RESOLVE_MILLISECONDS):
            return
        peer = LanPeer.read(info.properties, info.parsed_scoped_addresses(), info.port)
        if peer is not None and (name in self.found or len(self.found) < FOUND_MAX):
            self.found[name] = peer

    async def announce(self, mine: LanPeer) -> None:
        """Say that a peer is here; only its direct addresses at one port can be said."""
        direct = [parted(a) for a in mine.addresses if not a.startswith(RELAY)]
        numeric = [(host, port) for host, port in direct if _is_number(host)]
        if not numeric:
            return
        aio, _ = _zeroconf()
        port = numeric[0][1]
        info = aio.AsyncServiceInfo(
            SERVICE,
            f"{name_of(mine.peer)}-{mine.peer.hex()[:12]}.{SERVICE}",
            port=port,
            parsed_addresses=[host for host, at in numeric if at == port],
            properties={
                CHAIN: mine.chain_id.hex().encode(),
                PEER: mine.peer.hex().encode(),
                SWARM: mine.swarm.encode()[:SWARM_NAME_MAX],
            },
            server=f"{mine.peer.hex()[:32]}.local.",
        )
        await (await self._zeroconf.async_register_service(info))

    async def close(self) -> None:
        """Say goodbye."""
        for task in list(self._tasks):
            task.cancel()
        if self._browser is not None:
            await self._browser.async_cancel()
        if self._zeroconf is not None:
            await self._zeroconf.async_unregister_all_services()
            await self._zeroconf.async_close()


async def meet_on_lan(
    lan: Lan,
    mine: LanPeer,
    missing: Callable[[bytes], bool],
    dial: Callable[[LanPeer], Awaitable[bool]],
) -> None:
    """Announce this peer and dial those of its swarm that it misses, for ever.

    Args:
        lan: open already.
        mine: what to announce.
        missing: whether a peer of the swarm is not connected and welcome.
        dial: connects with one; whether that went well.
    """
    loop = asyncio.get_running_loop()
    backoffs: dict[bytes, tuple[Backoff, float]] = {}
    try:
        await lan.announce(mine)
        while True:
            for other in list(lan.found.values()):
                backoff, not_before = backoffs.get(other.peer, (Backoff(), 0.0))
                ours = other.chain_id == mine.chain_id and other.peer != mine.peer
                if not ours or not missing(other.peer) or loop.time() < not_before:
                    continue
                if await dial(other):
                    backoff.succeeded()
                wait = backoff.failed(random.random())
                backoffs[other.peer] = (backoff, loop.time() + wait)
            while len(backoffs) > FOUND_MAX:
                del backoffs[next(iter(backoffs))]
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        await lan.close()


def _is_number(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _zeroconf() -> tuple[Any, Any]:
    """Return `zeroconf.asyncio` and `zeroconf`.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import zeroconf
        import zeroconf.asyncio
    except ImportError as error:
        raise ConfigError(
            "finding peers on the local network needs zeroconf",
            hint="pip install 'peerformer[lan]'",
        ) from error
    return zeroconf.asyncio, zeroconf
