"""`peerformer simulate --peers 1000`: what a large swarm costs each peer, in words or as JSON."""

import json
import resource
import sys
import time

from peerformer.interface.progress import si
from peerformer.simulate.crowd import Cost, Crowd
from peerformer.simulate.invariants import Violation

MEBIBYTE = 1 << 20


def run_crowd(seed: int, peers: int, rounds: int, *, json_output: bool) -> int:
    """Simulate one large swarm and print what it cost; returns the exit code."""
    began = time.monotonic()
    crowd = Crowd(seed, peers, watched=(0,))
    processor = time.process_time()

    def on_round(number: int) -> None:
        print(
            f"round {number}/{rounds} held by nearly all  {crowd.world.steps} events  "
            f"{time.monotonic() - began:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    try:
        cost = crowd.run(rounds, on_round)
    except Violation as violation:
        print(f"broke: {violation}", file=sys.stderr)
        return 1
    processor = time.process_time() - processor
    found = as_json(crowd, cost, processor, time.monotonic() - began)
    if json_output:
        print(json.dumps(found))
        return 0
    print(f"{peers} peers, {rounds} rounds, committee of {found['committee']}")
    for name, text in _rows(found):
        print(f"{name:<34} {text}")
    return 0


def as_json(crowd: Crowd, cost: Cost, processor: float, seconds: float) -> dict[str, float | int]:
    """Return the cost of a crowd as one object, in base units."""
    alone = crowd.replay(0, time.process_time)
    members = crowd.world.hosts[0].machine
    assert members is not None
    return {
        "peers": cost.peers,
        "rounds": cost.rounds,
        "committee": len(members.chain.members.committee) or cost.peers,
        "messages": round(cost.messages, 1),
        "message_bytes": round(cost.message_bytes),
        "blob_bytes": round(cost.blob_bytes),
        "events": round(cost.events, 1),
        "links": round(cost.links, 1),
        "cpu_seconds_shared": round(processor / (cost.peers * cost.rounds), 5),
        "cpu_seconds_alone": round(alone / cost.rounds, 5),
        "finality_seconds": round(cost.finality_seconds, 2),
        "view_changes": cost.views,
        "seconds": round(seconds, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024,
    }


def _rows(found: dict[str, float | int]) -> list[tuple[str, str]]:
    return [
        ("messages a peer and round", f"{found['messages']:.0f}"),
        ("bytes in messages", f"{si(found['message_bytes'])}B"),
        ("bytes of contributions", f"{si(found['blob_bytes'])}B"),
        ("links of a peer", f"{found['links']:.0f}"),
        ("processor time, all in one process", f"{1e3 * found['cpu_seconds_shared']:.1f} ms"),
        ("processor time of one peer alone", f"{1e3 * found['cpu_seconds_alone']:.1f} ms"),
        ("virtual time to finality", f"{found['finality_seconds']:.1f} s"),
        ("changes of view", f"{found['view_changes']}"),
        ("took", f"{found['seconds']:.0f} s, {found['peak_memory_bytes'] / MEBIBYTE:.0f} MiB"),
    ]
