"""`peerformer lan`: which swarms announce themselves on this network, for whoever has no ticket."""

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from peerformer.errors import ConfigError
from peerformer.node.lan import Lan, LanPeer

SECONDS_MAX = 60.0


def lan(
    *,
    seconds: Annotated[float, Parameter(help="How long to listen.")] = 3.0,
    host: Annotated[
        tuple[str, ...],
        Parameter(negative=(), help="Address of this machine whose network to listen on."),
    ] = ("0.0.0.0",),
    json_output: Annotated[
        bool, Parameter(name="--json", negative=(), help="One JSON object.")
    ] = False,
) -> None:
    """List the swarms whose peers run with --lan on this network, and how to join each.

    What they say of themselves is not proved; whoever joins compares the key with its owner.
    """
    if not 0 < seconds <= SECONDS_MAX:
        raise ConfigError(
            f"--seconds must be between 0 and {SECONDS_MAX:g}", why=f"given: {seconds}"
        )
    swarms = by_chain(asyncio.run(_heard(host, seconds)))
    if json_output:
        print(json.dumps({"swarms": swarms}))
        return
    if not swarms:
        print("No swarm announces itself on this network (peers do so with --lan).")
    for swarm in swarms:
        first = swarm["peers"][0]["addresses"][0]
        print(f"{swarm['name']}   chain {swarm['chain_id'][:16]}   {len(swarm['peers'])} peers")
        print(f"  join with: peerformer node --port 8889 --bootstrap {first}")


async def _heard(hosts: Sequence[str], seconds: float) -> list[LanPeer]:
    listening = Lan(tuple(hosts))
    await listening.open()
    try:
        await asyncio.sleep(seconds)
    finally:
        found = list(listening.found.values())
        await listening.close()
    return found


def by_chain(found: Sequence[LanPeer]) -> list[dict[str, Any]]:
    """Return the swarms among what was heard, the largest first, as plain values."""
    chains: dict[bytes, list[LanPeer]] = {}
    for one in found:
        chains.setdefault(one.chain_id, []).append(one)
    largest_first = sorted(chains.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return [
        {
            "name": peers[0].swarm,
            "chain_id": chain_id.hex(),
            "peers": [
                {"peer_id": one.peer.hex(), "addresses": list(one.addresses)}
                for one in sorted(peers, key=lambda one: one.peer)
            ],
        }
        for chain_id, peers in largest_first
    ]
