"""What a vote and a round cost one peer in protocol work: the figures of docs/reliability.md.

    python benchmarks/vote.py --peers 64 --rounds 3

A swarm is simulated, and the events of one peer are given to a machine alone, twice: first with
nothing known, which counts every signature check; then again with the checks remembered, which
leaves what `handle` costs apart from them.
"""

import argparse
import time
from statistics import median

from peerformer.protocol.effects import Event, Received
from peerformer.protocol.machine import Machine
from peerformer.protocol.messages import Commit, Prepare, Said, unpack
from peerformer.simulate.crowd import Crowd


def is_vote(event: Event) -> bool:
    """Tell whether an event brings a PREPARE or a COMMIT."""
    if not isinstance(event, Received):
        return False
    packet = unpack(event.frame)
    return isinstance(packet, Said) and isinstance(packet.envelope.statement, Prepare | Commit)


def vote_seconds(crowd: Crowd, index: int) -> list[float]:
    """Return how long `handle` took for each vote, its signature checked before."""
    host, events = crowd.world.hosts[index], crowd.recorded[index]
    machine = Machine(crowd.world.genesis, host.seed, hash_chain=host.chain, now=events[0][1])
    took = []
    for event, now in events:
        votes = is_vote(event)
        began = time.perf_counter()
        machine.handle(event, now)
        if votes:
            took.append(time.perf_counter() - began)
    return took


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    crowd = Crowd(1, arguments.peers, watched=(0,))
    crowd.run(arguments.rounds)
    alone = crowd.replay(0, time.process_time) / arguments.rounds
    again = crowd.replay(0, time.process_time, knowing=True) / arguments.rounds
    votes = vote_seconds(crowd, 0)
    print(f"{arguments.peers} voters, {arguments.rounds} rounds, one peer alone")
    print(f"a round, signatures included      {1e3 * alone:.0f} ms of processor time")
    print(f"a round, signatures checked       {1e3 * again:.0f} ms")
    print(f"handle, a vote, median of {len(votes):<5}   {1e6 * median(votes):.0f} µs")


if __name__ == "__main__":
    main()
