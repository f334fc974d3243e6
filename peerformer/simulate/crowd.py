"""A thousand peers in one process: committees, gossip and blobs as sizes, to see what grows.

The same production peer as in every world. What the hosts share is the outcome of pure functions:
decoded frames, checked signatures, and the members that follow a header; so what one peer pays for
itself is measured by `replay`, which gives the recorded events of one host to a machine alone.
Links are made as the circles ask for them: finding addresses is left out. No clock is read here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from peerformer.protocol.committee import fingers
from peerformer.protocol.effects import Event
from peerformer.protocol.genesis import ADMISSION_CLOSED, Limits
from peerformer.protocol.identity import forget_signatures
from peerformer.protocol.machine import Machine
from peerformer.simulate.host import Host
from peerformer.simulate.works import FETCH_SECONDS
from peerformer.simulate.world import World

HASH_CHAIN_LENGTH = 64
TRAIN_SECONDS = 2.0
CAUGHT_UP = 0.99  # a round counts as final when so many hold it
LIMIT_SECONDS_A_ROUND = 120.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a crowd cost, a peer and a round unless it says otherwise."""

    peers: int
    rounds: int
    messages: float
    message_bytes: float
    blob_bytes: float
    events: float
    links: float  # connections of one peer at the end
    finality_seconds: float  # virtual, from the start of a round until nearly all hold it decided
    views: int  # changes of view in all


class Crowd:
    """A world of many founders."""

    def __init__(
        self,
        seed: int,
        peers: int,
        *,
        committee_size: int = 64,
        blob_size_bytes: int = 3_400_000,
        upload_bytes_per_second: float = 6.25e6,
        watched: tuple[int, ...] = (),
    ) -> None:
        """Found them; the events of the watched hosts are kept for `replay`."""
        limits = Limits(
            admission=ADMISSION_CLOSED,
            train_milliseconds_max=30_000,
            committee_size=committee_size,
        )
        self.blob_size_bytes = blob_size_bytes
        self.world = World(
            seed, peers, limits=limits, links=_ring, hash_chain_length=HASH_CHAIN_LENGTH
        )
        world = self.world
        blob_seconds = blob_size_bytes / upload_bytes_per_second
        world.works.fetch_seconds = lambda *_: (
            world.network.travel_seconds() + FETCH_SECONDS + blob_seconds
        )
        world.works.train_seconds = lambda _: TRAIN_SECONDS * (1 + world.random.random() / 4)
        world.invariants.on_first_decided = self._on_first_decided
        self.recorded: dict[int, list[tuple[Event, float]]] = {index: [] for index in watched}
        world.record = self.recorded
        self.began: dict[int, float] = {1: world.now}
        self.final: dict[int, float] = {}

    def run(self, rounds: int, on_round: Callable[[int], None] = lambda _: None) -> Cost:
        """Run until nearly all hold so many rounds decided.

        Raises:
            Violation: if an invariant breaks, or they do not get there.
        """
        world = self.world
        world.start()
        for host in world.hosts:  # some were not up yet when it started
            for neighbour in _ring(world, host):
                world.link(host, world.hosts[neighbour])
        self._link_circle(world.hosts[0])
        for number in range(1, rounds + 1):
            enough = CAUGHT_UP * len(world.hosts)
            reached = world.run(
                seconds=LIMIT_SECONDS_A_ROUND, until=partial(self._is_final, number, enough)
            )
            if not reached:
                tips = sorted(world.tip(host.index) for host in world.hosts)
                what = f"round {number} is not final, tips {tips[0]} to {tips[-1]}"
                world.invariants.fail("what is honest goes on", what)
            self.final[number] = world.now
            on_round(number)
        return self._cost(rounds)

    def _is_final(self, number: int, enough: float) -> bool:
        if self.world.steps % 512:
            return False  # looking at a thousand tips costs more than an event
        return sum(self.world.tip(host.index) >= number for host in self.world.hosts) >= enough

    def _on_first_decided(self, host: Host) -> None:
        machine = host.machine
        assert machine is not None
        self.began[machine.chain.tip + 1] = self.world.now
        self._link_circle(host)

    def _link_circle(self, host: Host) -> None:
        """Connect those that have work in the round that this host is in."""
        machine = host.machine
        assert machine is not None
        circle = machine.chain.members.circle
        for peer in circle:
            (one,) = self.world.by_id[peer]
            for neighbour in fingers(circle, peer):
                self.world.link(one, self.world.by_id[neighbour][0])

    def _cost(self, rounds: int) -> Cost:
        world, peers = self.world, len(self.world.hosts)
        share = 1 / (peers * rounds)
        waits = [self.final[number] - self.began[number] for number in range(1, rounds + 1)]
        return Cost(
            peers=peers,
            rounds=rounds,
            messages=world.sent * share,
            message_bytes=world.sent_bytes * share,
            blob_bytes=world.blobs_copied * self.blob_size_bytes * share,
            events=world.steps * share,
            links=sum(len(host.links) for host in world.hosts) / peers,
            finality_seconds=sum(waits) / rounds,
            views=sum(view * count for view, count in world.invariants.views.items()),
        )

    def replay(self, index: int, clock: Callable[[], float], *, knowing: bool = False) -> float:
        """Return the seconds of processor time that a host's events cost a machine alone.

        Signatures that others have checked in this process are checked again, unless `knowing`.
        """
        if not knowing:
            forget_signatures()
        host = self.world.hosts[index]
        assert host.machine is not None
        machine = Machine(
            self.world.genesis,
            host.seed,
            hash_chain=host.chain,
            now=self.recorded[index][0][1],
        )
        began = clock()
        for event, now in self.recorded[index]:
            machine.handle(event, now)
        took = clock() - began
        assert machine.chain.tip == host.machine.chain.tip, "the replay went another way"
        return took


def _ring(world: World, host: Host) -> tuple[int, ...]:
    """The neighbours of a host around the circle of all; all, where no committee is drawn."""
    if len(world.hosts) <= world.limits.committee_size:
        return tuple(range(len(world.hosts)))
    everybody = tuple(sorted(world.by_id))
    return tuple(world.by_id[peer][0].index for peer in fingers(everybody, host.me))
