"""Large swarms: a committee votes, some contribute, and messages go from neighbour to neighbour.

All to all costs every peer as much as there are peers. So above `committee_size` voters the beacon
draws a committee for an epoch; it alone attests and votes, and the others follow its certificates.
Each round the beacon also draws who contributes. How large a committee must be for so many liars
stands in the round protocol's table (hypergeometric bound); the program does not choose it.

Messages then travel by gossip: everybody keeps links with the peers at the distances 1, 2, 4, 8 …
around a circle of sorted ids (the fingers of Chord, Stoica et al., SIGCOMM 2001) and passes on what
is new. Votes, attestations and commitments go around the circle of those who have work in the
round, decided headers around the circle of all members: each peer sends a message to as many others
as its circle's size has binary digits, whatever the number of peers. Pure functions; nothing here
sends.
"""

from bisect import bisect_left
from collections.abc import Iterable

from peerformer.protocol.identity import hash_of

Ids = tuple[bytes, ...]


def drawn(candidates: Iterable[bytes], beacon: bytes, purpose: str, number: int) -> Ids:
    """Return so many of the candidates as the beacon draws them for a purpose, sorted."""
    ranked = sorted(candidates, key=lambda peer: hash_of(purpose, beacon, peer))
    return tuple(sorted(ranked[:number]))


def is_assigned(beacon: bytes, voter: bytes, author: bytes, share: int, whole: int) -> bool:
    """Tell whether the beacon assigns an author to a voter, as `share` of `whole` voters are."""
    draw = int.from_bytes(hash_of("assigned", beacon, voter, author)[:8], "little")
    return draw * whole < share << 64


def shard_of(beacon: bytes, peer: bytes) -> bytes:
    """Return which data a peer trains on for the round after that of a beacon."""
    return hash_of("shard", beacon, peer)


def fingers(circle: Ids, me: bytes) -> Ids:
    """Return my neighbours around a circle of sorted ids: those 1, 2, 4 … places after mine.

    Whoever is not of the circle stands where its id would be.
    """
    place = bisect_left(circle, me)
    others = len(circle) - (place < len(circle) and circle[place] == me)
    first = place + (others < len(circle))
    steps = (1 << power for power in range(others.bit_length()) if 1 << power <= others)
    chosen = dict.fromkeys(circle[(first + step - 1) % len(circle)] for step in steps)
    return tuple(sorted(peer for peer in chosen if peer != me))
