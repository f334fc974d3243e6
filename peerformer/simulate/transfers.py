"""What hosts of a world fetch from each other, checked as the node checks it before it counts."""

from typing import TYPE_CHECKING

from peerformer.byzantine import Byzantine
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.effects import FetchBlob, FetchState
from peerformer.protocol.identity import blob_hash
from peerformer.protocol.merkle import (
    MerkleTree,
    check_leaf,
    leaf_count,
    leaf_span,
    state_root,
)
from peerformer.simulate.host import Host

if TYPE_CHECKING:
    from peerformer.simulate.world import World


STATES_IN_USE_MAX = 5  # by so many who fetch, as at a node


def copied(world: "World", host: Host, source: Host, work: FetchBlob | FetchState) -> bool:
    """Copy what a host wants from a source, if it has it and what it gives is that."""
    blocked = (source.index, host.index) in world.network.blocked
    if source.peer is None or source.index not in host.links or blocked:
        return False
    if world.network.stops(source.index, host.index, work):
        return False
    if isinstance(work, FetchState):
        return _copied_state(world, host, source, work)
    data = source.blobs.held.get(work.blob_hash)
    if data is None or work.blob_hash in source.blobs.hidden or len(data) != work.size:
        return False
    if isinstance(source.peer, Byzantine) and not source.peer.serves(host.me, work.blob_hash):
        return False
    if blob_hash(world.genesis.chain_id, work.round, work.author, [data]) != work.blob_hash:
        return False
    host.blobs.put(work.blob_hash, data, durable=True)
    world.blobs_copied += 1
    return True


def hold_on(world: "World", work: FetchState) -> None:
    """Let sources keep the state that somebody begins to fetch, however long it takes."""
    for source in (host for peer in work.sources for host in world.by_id.get(peer, ())):
        if source.peer is not None:
            number, state = world.replicas.state_of(source.peer.bench)
            if number == work.round and state_root(state) == work.state_root:
                source.served[work.state_root] = state
                if len(source.served) > STATES_IN_USE_MAX:
                    del source.served[next(iter(source.served))]


def _copied_state(world: "World", host: Host, source: Host, work: FetchState) -> bool:
    """Copy a state chunk by proven chunk."""
    assert host.peer is not None and source.peer is not None
    _, state = world.replicas.state_of(source.peer.bench)
    state = source.served.get(work.state_root, state)
    if isinstance(source.peer, Byzantine):
        state = source.peer.state_to_serve(state)
    tree = MerkleTree(len(state), lambda start, end: state[start:end])
    for index in range(leaf_count(work.size)):
        start, end = leaf_span(work.size, index)
        try:
            leaf, proof = state[start:end], tree.proof(index)
            check_leaf(work.state_root, work.size, index, leaf, proof)
        except MalformedError:
            return False
    installed = host.peer.bench.install(work.round, work.state_root, state)
    if installed:
        world.save(host)
    return bool(installed)
