"""A swarm of real processes of which two listen nowhere: they train through others' relays."""

import json
from typing import Any

import pytest

from peerformer.node.assemble import PeerOptions
from peerformer.node.limits import RelayLimits
from peerformer.node.overview import overview
from peerformer.node.reach import Reach
from peerformer.node.supervisor import Supervisor
from tests.node.test_swarm import at_round, roots, small, supervisor, until

__all__ = ["supervisor"]

RELAYING = PeerOptions(threads=1, validates=False, reach=Reach(relay=RelayLimits()))
HIDDEN = PeerOptions(threads=1, validates=False, host=())


def network(supervisor: Supervisor, name: str) -> dict[str, Any]:
    """What a peer's status says of its network."""
    status = supervisor.swarm.peer(name).read_status() or {}
    return dict(status.get("network", {}))


def relays(supervisor: Supervisor, name: str) -> list[str]:
    """Where a peer is registered."""
    return list(network(supervisor, name).get("registered_at", []))


@pytest.mark.timeout(200)
def test_two_peers_that_only_dial_out_train_through_relays_and_survive_the_loss_of_one(
    supervisor: Supervisor,
) -> None:
    """Four voters, a quorum of three: without the first relay, the two must hear each other."""
    supervisor.found(small(4), lambda _: None)
    first, second, *hidden = [directory.name for directory in supervisor.swarm.peers()]
    options = {first: RELAYING, second: PeerOptions(threads=1, validates=False)}
    children = [supervisor.start(n, options.get(n, HIDDEN)) for n in (first, second, *hidden)]
    supervisor.await_listening(children)
    at_round(supervisor, 2, [first, second, *hidden])
    until(supervisor, lambda _: all(len(relays(supervisor, name)) == 1 for name in hidden))
    until(supervisor, lambda _: network(supervisor, first)["relaying"]["bytes_passed"] > 10_000)

    supervisor.kill(second)
    supervisor.await_listening([supervisor.start(second, RELAYING)])
    until(supervisor, lambda _: all(len(relays(supervisor, name)) == 2 for name in hidden))
    supervisor.kill(first)
    survivors = [second, *hidden]
    decided = overview(supervisor.swarm)["round"]
    at_round(supervisor, decided + 2, survivors)
    assert network(supervisor, second)["relaying"]["bytes_passed"] > 10_000
    found = [roots(supervisor, name) for name in survivors]
    for number in set.intersection(*map(set, found)):
        assert len({by_round[number] for by_round in found}) == 1
    told = json.dumps(network(supervisor, hidden[0])["addresses"])
    assert "relay:127.0.0.1:" in told
