"""Calling a peer through a relay, and coming when called: the two peers' side of `relay.py`.

Both dial the relay, and each is a client there; so once their bytes are passed on, one must be the
server of the TLS between them, on a connection that it dialled itself: the one that was called.
Bytes of that TLS that came before it has begun would be lost in the old reader, so the called peer
says READY and takes over in the same turn of the loop.
"""

import asyncio
import ssl
from typing import Any

from peerformer.node.dialling import DialError
from peerformer.node.relay import ABSENT, FULL, READY, SPENT, STRANGER
from peerformer.node.streams import Streams, begin_inner_tls
from peerformer.node.transfer import ACCEPTED

REFUSALS = {
    ABSENT: "the relay does not have that peer",
    FULL: "the relay is full",
    SPENT: "the relay has passed on all that it grants a day",
    STRANGER: "the relay serves its own swarm only",
}


async def call(
    relay: Streams,
    peer: bytes,
    protocol: asyncio.BaseProtocol,
    context: ssl.SSLContext,
    handshake_seconds_max: float,
) -> Any:
    """Call a peer over a connection with a relay; returns the transport to it.

    Raises:
        DialError: if the relay cannot or will not.
        OSError, EOFError, TimeoutError: if a connection broke.
    """
    relay.writer.write(peer)
    answer = await relay.reader.readexactly(1)
    if answer != ACCEPTED:
        raise DialError(REFUSALS.get(answer, "the relay does not speak this protocol"))
    return await begin_inner_tls(
        relay, protocol, context, as_server=False, handshake_seconds_max=handshake_seconds_max
    )


async def come(
    relay: Streams,
    token: bytes,
    protocol: asyncio.BaseProtocol,
    context: ssl.SSLContext,
    handshake_seconds_max: float,
) -> Any:
    """Take a call over a connection with a relay; returns the transport to whoever called.

    Raises:
        OSError, EOFError, TimeoutError: if a connection broke.
    """
    return await begin_inner_tls(
        relay,
        protocol,
        context,
        as_server=True,
        handshake_seconds_max=handshake_seconds_max,
        before=lambda: relay.writer.write(token + READY),
    )
