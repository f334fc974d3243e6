"""A world made of a seed: a virtual clock, a queue of events, hosts that run the production peer.

Every step pops the earliest event, hands it to a peer, and carries the effects out in order. Disks
keep what was persisted; a crash loses the rest and the effects not yet carried out. After every
event the `Invariants` look at the host it happened to. What goes wrong, and when, is the caller's
business: `crash`, `boot`, `freeze`, `network` and the disks are there to be abused.
"""

import heapq
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from random import Random

from peerformer.adversary import corrupt
from peerformer.byzantine import Byzantine, Plot
from peerformer.peer import Participant, Peer
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.effects import (
    Adopt,
    Command,
    Connected,
    Dial,
    Disconnect,
    Disconnected,
    Effect,
    Event,
    FetchBlob,
    FetchState,
    Persist,
    Received,
    Report,
    Send,
    SetTimer,
    StartWork,
    TimerFired,
    Train,
    Trained,
    Work,
    WorkFinished,
)
from peerformer.protocol.genesis import ADMISSION_OPEN, Founder, Genesis, Limits
from peerformer.protocol.identity import blob_hash, hash_of
from peerformer.protocol.machine import Machine
from peerformer.protocol.merkle import MerkleTree, check_leaf, leaf_count, leaf_span, state_root
from peerformer.protocol.messages import Packet, pack, unpack
from peerformer.simulate.disk import DiskFullError
from peerformer.simulate.host import Host, Replicas
from peerformer.simulate.invariants import Invariants, Violation
from peerformer.simulate.network import Network
from peerformer.simulate.toy import ToyReplicas

FETCH_SECONDS_MAX = 10.0
FETCH_RETRY_SECONDS = 0.4
TRACE_KEPT = 4_000
FRAMES_KEPT = 4_096
LIMITS = Limits(admission=ADMISSION_OPEN, joins_per_epoch=50, train_milliseconds_max=30_000)
BENCH_ATTACKS = ("poison", "sign-flip")  # lies of the bench, not of the machine


class World:
    """A world of `peers` hosts that found one swarm."""

    def __init__(
        self,
        seed: int,
        peers: int = 4,
        *,
        attacks: Mapping[int, str | tuple[str, ...]] | None = None,
        spares: int = 0,
        limits: Limits = LIMITS,
        replicas: Replicas | None = None,
    ) -> None:
        """Make the hosts; `attacks` names liars by index, `spares` are up but no founders."""
        self.seed = seed
        self.random = Random(seed)
        self.network = Network(self.random)
        self.now = 1_000_000_000.0
        self.limits = limits
        self.replicas: Replicas = replicas or ToyReplicas()
        self.hosts = [Host.made(index, self._key(index)) for index in range(peers + spares)]
        for index, names in (attacks or {}).items():
            self.hosts[index].attacks = (names,) if isinstance(names, str) else names
        self.by_id: dict[bytes, list[Host]] = {}
        for host in self.hosts:
            self.by_id.setdefault(host.me, []).append(host)
        self.genesis = self._found(self.hosts[:peers])
        liars = [host.keys for host in self.hosts if host.attacks]
        self.plot = Plot(self.genesis.chain_id, {keys.peer_id: keys for keys in liars})
        self.invariants = Invariants(seed, self.genesis, self.by_id)
        self.train_seconds: Callable[[int], float] = lambda _: 2.0 + self.random.random()
        self.bench_seconds: Callable[[Work], float] = lambda _: 0.02  # of any other work
        self.fetch_seconds: Callable[[Host, FetchBlob | FetchState], float] = lambda *_: (
            self.network.travel_seconds() + 0.05
        )
        self.crash_before_persist: dict[int, int] = {}  # host -> number of the persist
        self.crash_after_persist: dict[int, int] = {}
        self.trace: deque[tuple[float, int, Event | Effect | str]] = deque(maxlen=TRACE_KEPT)
        self.steps = self.crashes = 0
        self.debugging = False  # let exceptions of a peer through, with their traceback
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = count()
        self._packed: tuple[Packet | None, bytes] = (None, b"")
        self._unpacked: dict[bytes, Packet] = {}

    def _key(self, index: int) -> bytes:
        return hash_of("world key", self.seed.to_bytes(8, "little"), index.to_bytes(4, "little"))

    def _found(self, founding: list[Host]) -> Genesis:
        anchors = {host.me: host.chain.links[0] for host in founding}
        return Genesis(
            version=1,
            name=b"world",
            recipe=self.replicas.recipe,
            tokenizer_hash=bytes(32),
            tokenizer_size=0,
            validation_hash=bytes(32),
            validation_size=0,
            state_root=state_root(self.replicas.first_state()),
            state_size=self.replicas.state_size,
            blob_size_max=self.replicas.blob_size_max,
            limits=self.limits,
            founders=tuple(Founder(peer, anchors[peer]) for peer in sorted(anchors)),
        )

    def add_host(self, seed: bytes | None = None) -> Host:
        """Add a host that is down and no founder; with the key of `seed` it is somebody's twin."""
        index = len(self.hosts)
        host = Host.made(index, seed or self._key(index))
        self.hosts.append(host)
        self.by_id.setdefault(host.me, []).append(host)
        return host

    # --- running -------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring all hosts up."""
        for host in self.hosts:
            self.boot(host.index)

    def boot(self, index: int) -> None:
        """Start a host from its disk, and connect it to all that are up."""
        host = self.hosts[index]
        if host.disk.torn or host.retired:
            host.retired = True  # what the node does: this key must not vote any more
            return
        poisons = "poison" in host.attacks
        bench = self.replicas.bench(host.me, host.life, poisons=poisons)
        number, state = host.snapshot or (0, self.replicas.first_state())
        if number:
            assert bench.install(number, state_root(state), state)
        machine = Machine(
            self.genesis,
            host.seed,
            hash_chain=host.chain,
            addresses=(f"host-{index}:1",),
            records=host.disk.load(),
            state_round=number,
            unpack=self._unpack,
            now=self.now + host.clock_offset,
        )
        host.peer = self._participant(host, Peer(machine, bench, host.blobs))
        host.busy_until, host.training = self.now, None
        self._note(host, "starts")
        self._event(host, Command("start"))
        for other in self.hosts:
            if other is not host and other.peer is not None:
                self._link(host, other)

    def _participant(self, host: Host, peer: Peer) -> Participant:
        if "sign-flip" in host.attacks:
            return corrupt(peer, "sign-flip")
        lies = tuple(name for name in host.attacks if name not in BENCH_ATTACKS)
        return (
            Byzantine(peer, lies, Random(f"{self.seed}/{host.index}"), self.plot) if lies else peer
        )

    def _link(self, one: Host, other: Host) -> None:
        one.links.add(other.index)
        other.links.add(one.index)
        self._soon(one, Connected(other.me, f"host-{other.index}:1", outbound=True))
        self._soon(other, Connected(one.me, f"host-{one.index}:1", outbound=False))

    def crash(self, index: int) -> None:
        """Kill a host: what was persisted stays, all else is gone."""
        host = self.hosts[index]
        if host.peer is None:
            return
        self._note(host, "crashes")
        self.crashes += 1
        host.peer, host.life = None, host.life + 1
        host.effects_until_crash = None
        host.timers.clear()
        host.blobs.lose_fleeting()
        for other in list(host.links):
            self._cut(host, self.hosts[other])

    def _cut(self, one: Host, other: Host) -> None:
        one.links.discard(other.index)
        other.links.discard(one.index)
        for side, gone in ((one, other), (other, one)):
            if side.peer is not None:
                self._soon(side, Disconnected(gone.me))

    def command(self, index: int, command: Command) -> None:
        """Tell a host what its operator wants."""
        self._soon(self.hosts[index], command)

    def freeze(self, index: int, seconds: float, *, clock_jump: float = 0.0) -> None:
        """Close the lid of a host: nothing runs on it for a while, then its clock has jumped."""
        host = self.hosts[index]
        host.frozen_until = max(host.frozen_until, self.now + seconds)
        host.clock_offset += max(clock_jump, 0.0)
        self._note(host, f"sleeps for {seconds:.1f} s, its clock jumps by {clock_jump:.0f} s")

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

    def _note(self, host: Host, what: Event | Effect | str) -> None:
        self.trace.append((self.now, host.index, what))

    # --- events and effects --------------------------------------------------------------------

    def _event(self, host: Host, event: Event) -> None:
        if host.peer is None:
            return
        if self.now < host.frozen_until:
            self._soon(host, event, host.frozen_until - self.now)
            return
        self._note(host, event)
        life = host.life
        for effect in self._effects(host, event):
            self._carry_out(host, effect)
            if host.effects_until_crash is not None:
                host.effects_until_crash -= 1
                if host.effects_until_crash <= 0:
                    self.crash(host.index)
            if host.life != life:
                return  # crashed in the middle: the rest was never carried out
        self.invariants.after_event(host)

    def _effects(self, host: Host, event: Event) -> list[Effect]:
        assert host.peer is not None
        try:
            return host.peer.handle(event, self.now + host.clock_offset)
        except Exception as error:
            if self.debugging:
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
            what = f"host {host.index}: {type(error).__name__} at {place}: {error}"
            raise Violation(self.seed, "no exception escapes", what) from error

    def _carry_out(self, host: Host, effect: Effect) -> None:
        match effect:
            case Persist(records, deleted):
                self._persist(host, records, deleted)
            case Send(peer, packet):
                self._note(host, effect)
                self.invariants.before_send(host, packet)
                self._send(host, peer, packet)
            case SetTimer(name, seconds):
                self._set_timer(host, name, seconds)
            case StartWork(work):
                self._start(host, work)
            case Disconnect(peer):
                self._note(host, effect)
                for other in self.by_id.get(peer, ()):
                    if other.index in host.links:
                        self._cut(host, other)
            case Report(event):
                host.reports.append(event)
                self.invariants.on_report(host, effect)

    def _send(self, host: Host, peer: bytes, packet: Packet) -> None:
        if self._packed[0] is not packet:  # a broadcast is one packet, many times
            self._packed = (packet, pack(packet))
        frame = self._packed[1]
        for target in self.by_id.get(peer, ()):
            if target.index not in host.links:
                continue
            size = len(frame)
            for delay in self.network.deliveries(host.index, target.index, size, self.now):
                self._soon(target, Received(host.me, frame), delay)

    def _unpack(self, frame: bytes) -> Packet:
        """Unpack as production does, but the copies of one broadcast only once."""
        packet = self._unpacked.get(frame)
        if packet is None:
            packet = unpack(frame)
            if len(self._unpacked) >= FRAMES_KEPT:
                del self._unpacked[next(iter(self._unpacked))]
            self._unpacked[frame] = packet
        return packet

    def _persist(
        self, host: Host, records: tuple[tuple[str, bytes], ...], deleted: tuple[str, ...]
    ) -> None:
        host.persists += 1
        if self.crash_before_persist.get(host.index) == host.persists:
            self.crash(host.index)
            return
        self.invariants.before_persist(host, records)
        try:
            host.disk.write(records, deleted)
        except DiskFullError:
            self._note(host, "finds its disk full")
            self.crash(host.index)  # what the node does: nothing may be sent that is not durable
            return
        if self.crash_after_persist.get(host.index) == host.persists:
            self.crash(host.index)

    def _set_timer(self, host: Host, name: str, seconds: float) -> None:
        token = host.timers[name] = host.timers.get(name, 0) + 1
        life = host.life

        def fire() -> None:
            if host.life == life and host.timers.get(name) == token:
                self._event(host, TimerFired(name))

        self.at(seconds, fire)

    # --- works ---------------------------------------------------------------------------------

    def _start(self, host: Host, work: Work) -> None:
        if isinstance(work, FetchBlob | FetchState):
            self._fetch(host, work, self.now + FETCH_SECONDS_MAX)
        elif isinstance(work, Dial):
            self._dial(host, work)
        elif isinstance(work, Train) and self.limits.staleness:
            self._train(host, work)
        else:
            is_training = isinstance(work, Train)
            seconds = self.train_seconds(host.index) if is_training else self.bench_seconds(work)
            host.busy_until = max(host.busy_until, self.now) + seconds
            host.training_until += seconds  # a training in hand gives way
            life = host.life

            def perform() -> None:
                if host.life == life and host.peer is not None:
                    if self.now < host.frozen_until:
                        self.at(host.frozen_until - self.now, perform)
                        return
                    finished = host.peer.perform(work)
                    if isinstance(work, Adopt):
                        self._save(host)
                    self._event(host, finished)

            self.at(host.busy_until - self.now, perform)

    def _train(self, host: Host, work: Train) -> None:
        """Train while other works go on, after those ordered before.

        As on the node's worker: what is ordered meanwhile is done between two steps, and the
        training takes so much longer. The steps of one that is overtaken count for the next.
        """
        seconds = self.train_seconds(host.index)
        if host.training is None:
            host.training_until = max(host.busy_until, self.now) + seconds
        host.training = work
        life = host.life

        def perform() -> None:
            if host.life != life or host.peer is None or host.training is not work:
                return
            wait = max(host.frozen_until, host.training_until) - self.now
            if wait > 0:
                self.at(wait, perform)
                return
            host.training = None
            finished = host.peer.perform(work)
            if isinstance(finished.result, Trained):
                finished = replace(finished, result=replace(finished.result, seconds=seconds))
            self._event(host, finished)

        self.at(max(0.0, host.training_until - self.now), perform)

    def _save(self, host: Host) -> None:
        assert host.peer is not None
        number, state = self.replicas.state_of(host.peer.bench)
        self.invariants.on_state(host, number, state)
        if number % host.snapshot_every == 0:
            host.snapshot = (number, state)

    def _dial(self, host: Host, work: Dial) -> None:
        reached = False
        for other in self.by_id.get(work.peer, ()):
            if other.peer is not None and (host.index, other.index) not in self.network.blocked:
                reached = True
                if other.index not in host.links:
                    self._link(host, other)
        self._soon(host, WorkFinished(work, reached), 0.05)

    def _fetch(self, host: Host, work: FetchBlob | FetchState, deadline: float) -> None:
        life = host.life

        def attempt() -> None:
            if host.life != life or host.peer is None:
                return
            for peer in work.sources:
                if any(self._copy(host, source, work) for source in self.by_id.get(peer, ())):
                    self._event(host, WorkFinished(work, True))
                    return
            if self.now >= deadline:
                self._event(host, WorkFinished(work, False))
            else:
                self.at(FETCH_RETRY_SECONDS, attempt)

        self.at(self.fetch_seconds(host, work), attempt)

    def _copy(self, host: Host, source: Host, work: FetchBlob | FetchState) -> bool:
        blocked = (source.index, host.index) in self.network.blocked
        if source.peer is None or source.index not in host.links or blocked:
            return False
        if isinstance(work, FetchState):
            return self._copy_state(host, source, work)
        data = source.blobs.held.get(work.blob_hash)
        if data is None or work.blob_hash in source.blobs.hidden or len(data) != work.size:
            return False
        if isinstance(source.peer, Byzantine) and not source.peer.serves(host.me):
            return False
        if blob_hash(self.genesis.chain_id, work.round, work.author, [data]) != work.blob_hash:
            return False
        host.blobs.put(work.blob_hash, data, durable=False)
        return True

    def _copy_state(self, host: Host, source: Host, work: FetchState) -> bool:
        """Copy a state chunk by proven chunk, as the node does."""
        assert host.peer is not None and source.peer is not None
        _, state = self.replicas.state_of(source.peer.bench)
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
            self._save(host)
        return installed

    # --- looking -------------------------------------------------------------------------------

    def honest(self) -> list[Host]:
        """Return the hosts that do not lie and whose key is good."""
        return [host for host in self.hosts if host.honest and not host.retired]

    def tip(self, index: int) -> int:
        """Return the newest round that a host decided; -1 while it is down."""
        machine = self.hosts[index].machine
        return -1 if machine is None else machine.chain.tip
