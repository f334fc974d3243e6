"""Peers of another version, or of another mind about me: what their farewells mean, as errors."""

import re

from peerformer import __version__
from peerformer.errors import EvictedError, PeerformerError, SwarmError
from peerformer.protocol.identity import name_of
from peerformer.protocol.messages import PROTOCOL_VERSION
from peerformer.protocol.newcomer_packets import BANNED, OTHER_VERSION, Farewell

# What a peer calls its version is shown as a part of a command that somebody will type.
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+]{0,30}")


def software_of(told: bytes) -> str | None:
    """Return the version of the software that a peer names, if it looks like one."""
    text = told.decode("ascii", "replace")
    return text if _VERSION.fullmatch(text) else None


def other_version(who: str, version: int, software: str | None) -> SwarmError:
    """Return the failure to speak with peers of another protocol, with the version to install."""
    theirs = f"protocol {version}" + (f" (peerformer {software})" if software else "")
    return SwarmError(
        f"{who} speaks {theirs}, this is peerformer {__version__}, which speaks {PROTOCOL_VERSION}",
        why="all of a swarm check each other's rounds, so all run one version of the protocol",
        hint=f"pip install 'peerformer=={software}'"
        if software
        else "ask which version the others run: peerformer --version",
    )


def evicted(me: bytes, who: str) -> EvictedError:
    """Return the failure of a key that others say they have evicted."""
    name = name_of(me)
    return EvictedError(
        f"this key, {name}, was evicted from the swarm",
        why=f"told by {who}",
        hint="join under a new key: --run NEW-NAME",
        more=f"on their machine: peerformer log --evidence --about {name}",
    )


def sent_away(me: bytes, farewell: Farewell, who: str) -> PeerformerError:
    """Return why a newcomer was sent away, as the failure that it is."""
    if farewell.reason == OTHER_VERSION:
        return other_version(who, farewell.version, software_of(farewell.software))
    if farewell.reason == BANNED:
        return evicted(me, who)
    return SwarmError(f"{who} is of another swarm", hint="ask for a new ticket: peerformer invite")
