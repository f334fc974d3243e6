"""A world made of a seed: a virtual clock, a queue of events, hosts that run the production peer.

Every step pops the earliest event, hands it to a peer, and carries the effects out in order. Disks
keep what was persisted; a crash loses the rest and the effects not yet carried out. After each
decided round the world checks that nobody decided otherwise: equal rounds have equal headers and
equal state.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random

from peerformer import events
from peerformer.adversary import Liar, corrupt
from peerformer.peer import Peer
from peerformer.protocol.conduct import slot_of
from peerformer.protocol.effects import (
    Command,
    Connected,
    Dial,
    Disconnect,
    Disconnected,
    Effect,
    Event,
    FetchBlob,
    FetchState,
    Inspect,
    Persist,
    Received,
    Report,
    Send,
    SetTimer,
    StartWork,
    TimerFired,
    Train,
    Work,
    WorkFinished,
)
from peerformer.protocol.genesis import ADMISSION_OPEN, Founder, Genesis, Limits
from peerformer.protocol.identity import HashChain, KeyPair, blob_hash, hash_of
from peerformer.protocol.machine import Machine
from peerformer.protocol.membership import VOTER, subject_of
from peerformer.protocol.merkle import state_root
from peerformer.protocol.messages import Eviction, Packet, digest_of, pack
from peerformer.simulate.network import Network
from peerformer.simulate.toy import BLOB_SIZE_BYTES, STATE_SIZE_BYTES, ToyBench, first_state

FETCH_SECONDS_MAX = 10.0
FETCH_RETRY_SECONDS = 0.4
LIMITS = Limits(admission=ADMISSION_OPEN, joins_per_epoch=50, train_milliseconds_max=30_000)


class Violation(AssertionError):
    """The world saw what must never happen; the message names the seed and the invariant."""


@dataclass(slots=True)
class WorldBlobs:
    """Blobs of one host; all of them survive a crash."""

    held: dict[bytes, bytes] = field(default_factory=dict)
    hidden: set[bytes] = field(default_factory=set)

    def put(self, key: bytes, data: bytes, *, durable: bool, hidden: bool = False) -> None:
        """Hold bytes."""
        self.held[key] = data
        if hidden:
            self.hidden.add(key)

    def get(self, key: bytes) -> bytes | None:
        """Return bytes."""
        return self.held.get(key)

    def reveal(self, key: bytes) -> None:
        """Serve from now on."""
        self.hidden.discard(key)


@dataclass(slots=True)
class Host:
    """One machine of the world: a key, a disk, and a peer while it is up."""

    index: int
    seed: bytes
    keys: KeyPair
    disk: dict[str, bytes] = field(default_factory=dict)
    snapshot: tuple[int, bytes] = (0, b"")
    blobs: WorldBlobs = field(default_factory=WorldBlobs)
    peer: Peer | Liar | None = None
    life: int = 0  # grows at each crash: what was scheduled for an earlier life is void
    timers: dict[str, int] = field(default_factory=dict)
    busy_until: float = 0.0
    attack: str | None = None
    role: int = VOTER  # the one it asks for
    links: set[int] = field(default_factory=set)
    reports: list[events.Event] = field(default_factory=list)
    persists: int = 0
    evicted: bool = False


class World:
    """A world of `peers` hosts that found one swarm."""

    def __init__(
        self,
        seed: int,
        peers: int = 4,
        *,
        attacks: dict[int, str] | None = None,
        spares: int = 0,
        limits: Limits = LIMITS,
    ) -> None:
        """Make the hosts; `attacks` names liars by index, `spares` are up but no founders."""
        self.seed = seed
        self.random = Random(seed)
        self.network = Network(self.random)
        self.now = 1_000_000_000.0
        self.hosts = [self._host(index) for index in range(peers + spares)]
        for index, attack in (attacks or {}).items():
            self.hosts[index].attack = attack
        self.by_id = {host.keys.peer_id: host for host in self.hosts}
        self.genesis = self._found(self.hosts[:peers], limits)
        self.decided: dict[int, bytes] = {}  # round -> digest
        self.states: dict[int, bytes] = {}  # round -> state root
        self.said: dict[tuple[bytes, tuple[str, int, int]], bytes] = {}  # what honest hosts signed
        self.train_seconds: Callable[[int], float] = lambda _: 2.0 + self.random.random()
        self.crash_before_persist: dict[int, int] = {}  # host -> number of the persist
        self.crash_after_persist: dict[int, int] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = count()
        self.steps = 0

    def _host(self, index: int) -> Host:
        seed = hash_of("world key", self.seed.to_bytes(8, "little"), index.to_bytes(4, "little"))
        return Host(index, seed, KeyPair.from_seed(seed))

    def _found(self, founding: list[Host], limits: Limits) -> Genesis:
        anchors = {h.keys.peer_id: HashChain.from_seed(h.seed).links[0] for h in founding}
        return Genesis(
            version=1,
            name=b"world",
            recipe=b"{}",
            tokenizer_hash=bytes(32),
            tokenizer_size=0,
            validation_hash=bytes(32),
            validation_size=0,
            state_root=state_root(first_state()),
            state_size=STATE_SIZE_BYTES,
            blob_size_max=BLOB_SIZE_BYTES,
            limits=limits,
            founders=tuple(Founder(peer, anchors[peer]) for peer in sorted(anchors)),
        )

    # --- running -------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring all hosts up."""
        for host in self.hosts:
            self.boot(host.index)

    def boot(self, index: int) -> None:
        """Start a host from its disk, and connect it to all that are up."""
        host = self.hosts[index]
        round_number, state = host.snapshot
        bench = ToyBench(host.keys.peer_id, poisons=host.attack == "poison", life=host.life)
        if round_number:
            bench.state, bench.round = state, round_number
        machine = Machine(
            self.genesis,
            host.seed,
            addresses=(f"host-{index}:1",),
            records=dict(host.disk),
            state_round=round_number,
            role=host.role,
            now=self.now,
        )
        peer = Peer(machine, bench, host.blobs)
        lies = host.attack and host.attack != "poison"
        host.peer = corrupt(peer, host.attack) if lies and host.attack else peer
        host.busy_until = self.now
        self._event(host, Command("start"))
        for other in self.hosts:
            if other is not host and other.peer is not None:
                self._link(host, other)

    def _link(self, one: Host, other: Host) -> None:
        one.links.add(other.index)
        other.links.add(one.index)
        self._soon(one, Connected(other.keys.peer_id, f"host-{other.index}:1", outbound=True))
        self._soon(other, Connected(one.keys.peer_id, f"host-{one.index}:1", outbound=False))

    def crash(self, index: int) -> None:
        """Kill a host: what was persisted stays, all else is gone."""
        host = self.hosts[index]
        host.peer, host.life = None, host.life + 1
        host.timers.clear()
        for other in list(host.links):
            self.hosts[other].links.discard(index)
            self._soon(self.hosts[other], Disconnected(host.keys.peer_id))
        host.links.clear()

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something `seconds` from now."""
        heapq.heappush(self._queue, (self.now + seconds, next(self._serial), action))

    def _soon(self, host: Host, event: Event, seconds: float = 0.01) -> None:
        life = host.life

        def deliver() -> None:
            if host.life == life:
                self._event(host, event)

        self.at(seconds, deliver)

    def run(self, *, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Run for so much virtual time, or until a condition holds; tells whether it did."""
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            time, _, action = heapq.heappop(self._queue)
            self.now = max(self.now, time)
            action()
            self.steps += 1
            if until():
                return True
        self.now = max(self.now, end)
        return until()

    # --- events and effects --------------------------------------------------------------------

    def _event(self, host: Host, event: Event) -> None:
        if host.peer is None:
            return
        life = host.life
        for effect in host.peer.handle(event, self.now):
            if host.life != life:
                return  # crashed in the middle: the rest was never carried out
            self._carry_out(host, effect)
        self._check(host)

    def _carry_out(self, host: Host, effect: Effect) -> None:
        match effect:
            case Persist(records, deleted):
                self._persist(host, records, deleted)
            case Send(peer, packet):
                self._check_said(host, packet)
                target, frame = self.by_id[peer], pack(packet)
                for delay in self.network.deliveries(host.index, target.index):
                    if target.index in host.links:
                        self._soon(target, Received(host.keys.peer_id, frame), delay)
            case SetTimer(name, seconds):
                self._set_timer(host, name, seconds)
            case StartWork(work):
                self._start(host, work)
            case Disconnect(peer):
                other = self.by_id[peer]
                host.links.discard(other.index)
                other.links.discard(host.index)
                self._soon(host, Disconnected(peer))
                self._soon(other, Disconnected(host.keys.peer_id))
            case Report(event):
                host.reports.append(event)

    def _persist(
        self, host: Host, records: tuple[tuple[str, bytes], ...], deleted: tuple[str, ...]
    ) -> None:
        host.persists += 1
        if self.crash_before_persist.get(host.index) == host.persists:
            self.crash(host.index)
            return
        for key, data in records:
            if key.startswith("slot/") and host.disk.get(key, data) != data:
                raise Violation(f"seed {self.seed}: host {host.index} signed {key} twice")
            host.disk[key] = data
        for key in deleted:
            host.disk.pop(key, None)
        if self.crash_after_persist.get(host.index) == host.persists:
            self.crash(host.index)

    def _set_timer(self, host: Host, name: str, seconds: float) -> None:
        token = host.timers[name] = host.timers.get(name, 0) + 1
        life = host.life

        def fire() -> None:
            if host.life == life and host.timers.get(name) == token:
                self._event(host, TimerFired(name))

        self.at(seconds, fire)

    def _start(self, host: Host, work: Work) -> None:
        if isinstance(work, FetchBlob | FetchState):
            self._fetch(host, work, self.now + FETCH_SECONDS_MAX)
        elif isinstance(work, Inspect):
            self._inspect(host, work)
        elif isinstance(work, Dial):
            self._dial(host, work)
        else:
            self._perform(host, work)

    def _perform(self, host: Host, work: Work) -> None:
        seconds = self.train_seconds(host.index) if isinstance(work, Train) else 0.02
        host.busy_until = max(host.busy_until, self.now) + seconds
        life = host.life

        def perform() -> None:
            if host.life == life and host.peer is not None:
                finished = host.peer.perform(work)
                bench = host.peer.bench
                if isinstance(bench, ToyBench) and bench.round > host.snapshot[0]:
                    host.snapshot = (bench.round, bench.state)
                self._event(host, finished)

        self.at(host.busy_until - self.now, perform)

    def _inspect(self, host: Host, work: Inspect) -> None:
        wanted = work.exhibit
        fetch = FetchBlob(wanted.round, wanted.author, wanted.blob_hash, wanted.size, work.sources)

        def look(held: bool) -> None:
            if held:
                self._perform(host, work)
            else:
                self._event(host, WorkFinished(work, None))

        if wanted.blob_hash in host.blobs.held:
            look(True)
        else:
            self._fetch(host, fetch, self.now + FETCH_SECONDS_MAX, look)

    def _dial(self, host: Host, work: Dial) -> None:
        other = self.by_id[work.peer]
        blocked = (host.index, other.index) in self.network.blocked
        reached = other.peer is not None and not blocked
        if reached and other.index not in host.links:
            self._link(host, other)
        self._soon(host, WorkFinished(work, reached), 0.05)

    def _fetch(
        self,
        host: Host,
        work: FetchBlob | FetchState,
        deadline: float,
        then: Callable[[bool], None] | None = None,
    ) -> None:
        life = host.life
        done = then or (lambda fetched: self._event(host, WorkFinished(work, fetched)))

        def attempt() -> None:
            if host.life != life or host.peer is None:
                return
            for peer in work.sources:
                source = self.by_id.get(peer)
                if source is None or source.peer is None or source.index not in host.links:
                    continue
                blocked = (source.index, host.index) in self.network.blocked
                if not blocked and self._copy(host, source, work):
                    done(True)
                    return
            if self.now >= deadline:
                done(False)
            else:
                self.at(FETCH_RETRY_SECONDS, attempt)

        self.at(0.05 + self.random.random() * 0.1, attempt)

    def _copy(self, host: Host, source: Host, work: FetchBlob | FetchState) -> bool:
        assert host.peer is not None and source.peer is not None
        if isinstance(work, FetchState):
            bench = source.peer.bench
            assert isinstance(bench, ToyBench)
            installed = host.peer.bench.install(work.round, work.state_root, bench.state)
            if installed:
                host.snapshot = (work.round, bench.state)
            return installed
        data = source.blobs.held.get(work.blob_hash)
        if data is None or work.blob_hash in source.blobs.hidden or len(data) != work.size:
            return False
        chain_id = self.genesis.chain_id
        if blob_hash(chain_id, work.round, work.author, [data]) != work.blob_hash:
            return False
        host.blobs.put(work.blob_hash, data, durable=True)
        return True

    # --- invariants ----------------------------------------------------------------------------

    def honest(self) -> list[Host]:
        """Return the hosts that do not lie."""
        return [host for host in self.hosts if host.attack is None]

    def tip(self, index: int) -> int:
        """Return the newest round that a host decided; -1 while it is down."""
        peer = self.hosts[index].peer
        return -1 if peer is None else peer.machine.chain.tip

    def _check_said(self, host: Host, packet: Packet) -> None:
        envelope = getattr(packet, "envelope", None)
        if envelope is None or envelope.sender != host.keys.peer_id or host.attack is not None:
            return
        slot = slot_of(envelope.statement)
        said = (
            envelope.body
            if slot is None
            else self.said.setdefault((envelope.sender, slot), envelope.body)
        )
        if said != envelope.body:
            raise Violation(f"seed {self.seed}: host {host.index} said two things for {slot}")

    def _check(self, host: Host) -> None:
        if host.peer is None or host.attack not in (None, "poison"):
            return
        machine = host.peer.machine
        if machine.forked:
            raise Violation(f"seed {self.seed}: host {host.index} saw a fork")
        for number in range(max(1, machine.chain.tip - 1), machine.chain.tip + 1):
            header = machine.chain.items[number - 1].header
            digest = digest_of(header)
            if self.decided.setdefault(number, digest) != digest:
                raise Violation(f"seed {self.seed}: two headers decided for round {number}")
            for operation in header.operations:
                evicted = subject_of(operation) if isinstance(operation, Eviction) else None
                if evicted is not None and self.by_id[evicted].attack is None:
                    raise Violation(f"seed {self.seed}: an honest peer was evicted")
        bench = host.peer.bench
        if isinstance(bench, ToyBench):
            root = state_root(bench.state)
            if self.states.setdefault(bench.round, root) != root:
                raise Violation(f"seed {self.seed}: two states for round {bench.round}")
