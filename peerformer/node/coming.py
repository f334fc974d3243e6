"""Blobs of a peer that cannot be dialled: it is asked to come, and dials the connection itself.

It keeps a connection for messages that it dialled; on that it is asked, by a word in place of a
frame's length, and opens another on which the roles are turned round: it dialled, and it serves. So
a relay is needed only between two peers of which neither can be dialled. It comes only to an
address that it dialled before, to the key that it found there, and only so often at once.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from peerformer.node.connection import Budget, Connection
from peerformer.node.dialling import DialError
from peerformer.node.streams import Streams
from peerformer.node.transfer import ACCEPTED, BlobReceiver, Server

COME = b"O"  # the kind of a connection whose dialler serves


@dataclass(slots=True)
class Coming:
    """Asking others to come, and coming when asked, for one transport."""

    budget: Budget
    open: Callable[[str, bytes, bytes | None], Awaitable[Streams]]  # address, kind, expected key
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    server_for: Callable[[bytes], Server]
    _awaited: dict[bytes, list[asyncio.Future[BlobReceiver]]] = field(default_factory=dict)
    _serving: Counter[bytes] = field(default_factory=Counter)

    # --- asking --------------------------------------------------------------------------------

    async def invite(self, peer: bytes) -> BlobReceiver:
        """Return a connection for blobs that a peer has dialled.

        Raises:
            DialError: if it holds no connection on which it could be asked, or does not come.
        """
        connection = next((c for c in self.budget.connections if _can_be_asked(c, peer)), None)
        if connection is None:
            raise DialError("it has dialled no connection on which it could be asked to come")
        came: asyncio.Future[BlobReceiver] = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(peer, []).append(came)
        connection.ask_to_come()
        try:
            async with asyncio.timeout(2 * self.budget.limits.handshake_seconds_max):
                return await asyncio.shield(came)
        except BaseException as error:
            if came.done():
                came.result().abort()
            if isinstance(error, TimeoutError):
                raise DialError("it did not come when it was asked") from error
            raise
        finally:
            waiting = self._awaited.get(peer, [])
            if came in waiting:
                waiting.remove(came)
            if not waiting:
                self._awaited.pop(peer, None)

    async def on_come(self, peer: bytes, streams: Streams) -> None:
        """Take in a connection whose dialler serves, if it was asked to come."""
        waiting = self._awaited.get(peer)
        if not waiting:
            return
        came = waiting.pop(0)
        streams.writer.write(ACCEPTED)
        receiver = BlobReceiver(self.budget.traffic)
        receiver.take_over(streams.writer.transport)
        came.set_result(receiver)
        await receiver.until_lost()

    # --- coming --------------------------------------------------------------------------------

    def on_asked(self, connection: Connection) -> None:
        """Come, if it was me who dialled."""
        peer = connection.peer_id
        many = self._serving[peer] >= self.budget.limits.served_per_peer_max
        if not (connection.inbound or connection.relayed or many):
            self._serving[peer] += 1
            self.spawn(self._come(connection.address, peer))

    async def _come(self, address: str, peer: bytes) -> None:
        streams: Streams | None = None
        try:
            streams = await self.open(address, COME, peer)
            await self.server_for(peer).serve(streams.reader, streams.writer)
        except (OSError, EOFError, TimeoutError, DialError):
            pass  # it has what it wanted, or asks again
        finally:
            if streams is not None:
                streams.writer.transport.abort()
            self._serving[peer] -= 1
            if not self._serving[peer]:
                del self._serving[peer]


def _can_be_asked(connection: Connection, peer: bytes) -> bool:
    mine = connection.peer_id == peer and connection.inbound
    return mine and not (connection.relayed or connection.ended)
