"""A world made of a seed: a virtual clock, a queue of events, hosts that run the production peer.

Every step pops the earliest event, hands it to a peer, and carries the effects out in order. Disks
keep what was persisted; a crash loses the rest and the effects not yet carried out. After every
event the `Invariants` look at the host it happened to. What goes wrong, and when, is the caller's
business: `crash`, `boot`, `freeze`, `network` and the disks are there to be abused.
"""

import heapq
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from random import Random
from typing import Any, TypeVar

from peerformer.adversary import POISONS, corrupt
from peerformer.byzantine import Byzantine, Plot
from peerformer.malformed import MALFORMED
from peerformer.peer import Participant, Peer
from peerformer.protocol.anchoring import Anchoring
from peerformer.protocol.chain import Succeed
from peerformer.protocol.checkpoint import HEADER_PREFIX
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.effects import (
    Command,
    Connected,
    Disconnect,
    Disconnected,
    Effect,
    Event,
    Persist,
    Received,
    Report,
    Send,
    SetTimer,
    StartWork,
    TimerFired,
)
from peerformer.protocol.genesis import ADMISSION_OPEN, Founder, Genesis, Limits
from peerformer.protocol.identity import KeyPair, hash_of
from peerformer.protocol.machine import Machine
from peerformer.protocol.merkle import state_root
from peerformer.protocol.messages import Packet, pack, unpack
from peerformer.simulate.disk import DiskFullError
from peerformer.simulate.host import HASH_CHAIN_LENGTH, TWIN, Host, Replicas
from peerformer.simulate.invariants import Invariants, Violation
from peerformer.simulate.lineage import Lineage
from peerformer.simulate.network import Network
from peerformer.simulate.toy import ToyReplicas
from peerformer.simulate.works import Works

TRACE_KEPT = 4_000
FRAMES_KEPT = 4_096
LIMITS = Limits(admission=ADMISSION_OPEN, joins_per_epoch=50, train_milliseconds_max=30_000)
Key = TypeVar("Key")
Kept = TypeVar("Kept")
NO_LIES = ("poison", *POISONS, TWIN)  # the machine itself keeps to the protocol


def remember(kept: dict[Key, Kept], key: Key, value: Kept) -> None:
    """Keep what was made for a frame or packet: the copies of one broadcast need it again."""
    if len(kept) >= FRAMES_KEPT:
        del kept[next(iter(kept))]
    kept[key] = value


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
        links: Callable[["World", Host], Iterable[int]] | None = None,
        hash_chain_length: int = HASH_CHAIN_LENGTH,
        sorted_ids: bool = False,
    ) -> None:
        """Make the hosts; `attacks` names liars by index, `spares` are up but no founders.

        `links` says with whom a host is connected when it starts; without it, with all that are up,
        and it tells them where it is reached. With `sorted_ids` hosts are numbered as their ids are
        sorted, which makes plain whose turn it is: host (round + view) mod peers, while all attest.
        """
        self.seed = seed
        self.random = Random(seed)
        self.network = Network(self.random)
        self.now = 1_000_000_000.0
        self.limits, self._links = limits, links
        self.succeed: Succeed = Lineage()
        self.replicas: Replicas = replicas or ToyReplicas()
        self.hash_chain_length = hash_chain_length
        keys = [self._key(index) for index in range(peers + spares)]
        if sorted_ids:
            keys.sort(key=lambda key: KeyPair.from_seed(key).peer_id)
        self.hosts = [self._host(index, key) for index, key in enumerate(keys)]
        for index, names in (attacks or {}).items():
            self.hosts[index].attacks = (names,) if isinstance(names, str) else names
        self.by_id: dict[bytes, list[Host]] = {}
        for host in self.hosts:
            self.by_id.setdefault(host.me, []).append(host)
        self.genesis = self._found(self.hosts[:peers])
        liars = [host for host in self.hosts if host.attacks]
        # Who only poisons keeps its key to itself: the machine is held to the protocol.
        keys_told = {h.me: h.keys for h in liars if set(h.attacks) - {"poison", *POISONS}}
        self.plot = Plot(self.genesis.chain_id, keys_told, {host.me for host in liars})
        self.invariants = Invariants(seed, self.genesis, self.by_id)
        self.works = Works(self)
        self.crash_before_persist: dict[int, int] = {}  # host -> number of the persist
        self.crash_after_persist: dict[int, int] = {}
        self.before_effect: Callable[[Host, Effect], None] = lambda host, effect: None
        self.trace: deque[tuple[float, int, Event | Effect | str]] = deque(maxlen=TRACE_KEPT)
        self.steps = self.crashes = self.sent = self.sent_bytes = self.blobs_copied = 0
        self.record: dict[int, list[tuple[Event, float]]] = {}  # host -> what happened to it
        self.debugging = False  # let exceptions of a peer through, with their traceback
        # When, in which order, to whom in which of its lives (None: to nobody), and what.
        self._queue: list[tuple[float, int, Host | None, int, Any]] = []
        self._serial = count()
        self._packed: dict[Packet, bytes] = {}
        self._sent_last: tuple[Packet | None, Host | None, Received] = (
            None,
            None,
            Received(b"", b""),
        )
        self._unpacked: dict[bytes, Packet] = {}

    def _key(self, index: int) -> bytes:
        return hash_of("world key", self.seed.to_bytes(8, "little"), index.to_bytes(4, "little"))

    def _host(self, index: int, seed: bytes | None = None) -> Host:
        return Host.made(index, seed or self._key(index), self.hash_chain_length)

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
        host = self._host(index, seed)
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
        anchored = any(key.startswith(HEADER_PREFIX) for key in host.disk.records)
        if host.checkpoint is not None and not anchored:
            host.anchoring = Anchoring(self.genesis, host.checkpoint, self.succeed)
        else:
            self._make_peer(host)
        self._note(host, "starts")
        self.event(host, Command("start"))
        near = self._links(self, host) if self._links else range(len(self.hosts))
        for other in near:
            self.link(host, self.hosts[other])

    def _make_peer(self, host: Host) -> None:
        poisons = "poison" in host.attacks
        bench = self.replicas.bench(host.me, host.life, poisons=poisons)
        number, state = host.snapshot or (0, self.replicas.first_state())
        if number:
            assert bench.install(number, state_root(state), state)
        try:
            machine = Machine(
                self.genesis,
                host.seed,
                hash_chain=host.chain,
                addresses=() if self._links else (f"host-{host.index}:1",),
                records=host.disk.load(),
                state_round=number,
                role=host.role,
                unpack=self._unpack,
                succeed=self.succeed,
                now=self.now + host.clock_offset,
            )
        except MalformedError as error:
            what = f"host {host.index}: {error}"
            raise Violation(self.seed, "a peer can read what it wrote", what) from error
        host.peer = self._participant(host, Peer(machine, bench, host.blobs))
        host.busy_until, host.training = self.now, None

    def _anchored(self, host: Host) -> None:
        """Start a host as a peer, now that its chain is on its disk."""
        self._stop(host)
        self.boot(host.index)

    def _participant(self, host: Host, peer: Peer) -> Participant:
        for name in MALFORMED:
            if name in host.attacks:
                return corrupt(peer, name)
        for name in POISONS:
            if name in host.attacks:
                corrupt(peer, name)
        lies = tuple(name for name in host.attacks if name not in NO_LIES)
        return (
            Byzantine(peer, lies, Random(f"{self.seed}/{host.index}"), self.plot) if lies else peer
        )

    def link(self, one: Host, other: Host) -> None:
        """Connect two hosts that are up, unless they are; twins never meet."""
        apart = one.me != other.me and other.index not in one.links
        if one.up and other.up and apart:
            self._link(one, other)

    def _link(self, one: Host, other: Host) -> None:
        one.links.add(other.index)
        other.links.add(one.index)
        self.soon(one, Connected(other.me, f"host-{other.index}:1", outbound=True))
        self.soon(other, Connected(one.me, f"host-{one.index}:1", outbound=False))

    def crash(self, index: int) -> None:
        """Kill a host: what was persisted stays, all else is gone."""
        host = self.hosts[index]
        if not host.up:
            return
        self._note(host, "crashes")
        self.crashes += 1
        self._stop(host)

    def _stop(self, host: Host) -> None:
        host.peer, host.anchoring, host.life = None, None, host.life + 1
        host.effects_until_crash = None
        host.timers.clear()
        host.blobs.lose_fleeting()
        host.served.clear()
        for other in list(host.links):
            self._cut(host, self.hosts[other])

    def _cut(self, one: Host, other: Host) -> None:
        one.links.discard(other.index)
        other.links.discard(one.index)
        for side, gone in ((one, other), (other, one)):
            if side.up:
                self.soon(side, Disconnected(gone.me))

    def command(self, index: int, command: Command) -> None:
        """Tell a host what its operator wants."""
        self.soon(self.hosts[index], command)

    def freeze(self, index: int, seconds: float, *, clock_jump: float = 0.0) -> None:
        """Close the lid of a host: nothing runs on it for a while, then its clock has jumped."""
        host = self.hosts[index]
        host.frozen_until = max(host.frozen_until, self.now + seconds)
        host.clock_offset += max(clock_jump, 0.0)
        self._note(host, f"sleeps for {seconds:.1f} s, its clock jumps by {clock_jump:.0f} s")

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something `seconds` from now."""
        heapq.heappush(self._queue, (self.now + seconds, next(self._serial), None, 0, action))

    def soon(self, host: Host, event: Event, seconds: float = 0.01) -> None:
        """Let something happen to a host, unless it crashes before."""
        when = self.now + seconds
        heapq.heappush(self._queue, (when, next(self._serial), host, host.life, event))

    def run(self, *, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Run for so much virtual time, or until a condition holds; tells whether it did."""
        end, queue = self.now + seconds, self._queue
        while queue and queue[0][0] <= end:
            time, _, host, life, what = heapq.heappop(queue)
            if time > self.now:
                self.now = time
            if host is None:
                what()
            elif host.life == life:
                self.event(host, what)
            self.steps += 1
            if until():
                return True
        self.now = max(self.now, end)
        return until()

    def _note(self, host: Host, what: Event | Effect | str) -> None:
        self.trace.append((self.now, host.index, what))

    # --- events and effects --------------------------------------------------------------------

    def event(self, host: Host, event: Event) -> None:
        """Let something happen to a host, and carry out what it orders."""
        if not host.up:
            return
        if self.now < host.frozen_until:
            self.soon(host, event, host.frozen_until - self.now)
            return
        self.trace.append((self.now, host.index, event))
        if host.index in self.record:
            self.record[host.index].append((event, self.now + host.clock_offset))
        life = host.life
        for effect in self._effects(host, event):
            self.before_effect(host, effect)
            if host.life == life:
                self._carry_out(host, effect)
            if host.effects_until_crash is not None:
                host.effects_until_crash -= 1
                if host.effects_until_crash <= 0:
                    self.crash(host.index)
            if host.life != life:
                return  # crashed in the middle: the rest was never carried out
        self.invariants.after_event(host)
        if host.anchoring is not None and host.anchoring.chain is not None:
            self._anchored(host)

    def _effects(self, host: Host, event: Event) -> list[Effect]:
        handler = host.anchoring or host.peer
        assert handler is not None
        try:
            return handler.handle(event, self.now + host.clock_offset)
        except Exception as error:
            if self.debugging:
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
            what = f"host {host.index}: {type(error).__name__} at {place}: {error}"
            raise Violation(self.seed, "no exception escapes", what) from error

    def _carry_out(self, host: Host, effect: Effect) -> None:
        match effect:
            case Send(peer, packet):
                self.trace.append((self.now, host.index, effect))
                self.invariants.before_send(host, packet)
                self._send(host, peer, packet)
            case Persist(records, deleted):
                self._persist(host, records, deleted)
            case SetTimer(name, seconds):
                self._set_timer(host, name, seconds)
            case StartWork(work):
                self.works.start(host, work)
            case Disconnect(peer):
                self._note(host, effect)
                for other in self.by_id.get(peer, ()):
                    if other.index in host.links:
                        self._cut(host, other)
            case Report(event):
                host.reports.append(event)
                self.invariants.on_report(host, effect)

    def _send(self, host: Host, peer: bytes, packet: Packet) -> None:
        last_packet, sender, _ = self._sent_last
        if packet is not last_packet or host is not sender:  # a broadcast is one packet, many times
            frame = self._packed.get(packet)
            if frame is None:
                frame = pack(packet)
                remember(self._packed, packet, frame)
            self._sent_last = (packet, host, Received(host.me, frame))
        for target in self.by_id.get(peer, ()):
            stopped = self.network.stops(host.index, target.index, packet)
            if target.index in host.links and not stopped:
                self._transmit(host, target, self._sent_last[2])

    def _transmit(self, host: Host, target: Host, received: Received) -> None:
        size_bytes = len(received.frame)
        self.sent += 1
        self.sent_bytes += size_bytes
        for delay in self.network.deliveries(host.index, target.index, size_bytes, self.now):
            self.soon(target, received, delay)

    def send(self, source: int, target: int, packet: Packet) -> None:
        """Send again what the network had stopped."""
        host = self.hosts[source]
        if target in host.links:
            self._transmit(host, self.hosts[target], Received(host.me, pack(packet)))

    def _unpack(self, frame: bytes) -> Packet:
        """Unpack as production does, but the copies of one broadcast only once."""
        packet = self._unpacked.get(frame)
        if packet is None:
            packet = unpack(frame)
            remember(self._unpacked, frame, packet)
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
                self.event(host, TimerFired(name))

        self.at(seconds, fire)

    def save(self, host: Host) -> None:
        """Keep the state that a host has just come to, as its disk would."""
        assert host.peer is not None
        number, state = self.replicas.state_of(host.peer.bench)
        self.invariants.on_state(host, number, state)
        if number % host.snapshot_every == 0:
            host.snapshot = (number, state)

    def dismantle(self) -> None:
        """Let go of everything: what refers to each other in circles is then freed at once.

        Otherwise it is searched for among all there is, which takes a tenth of a campaign.
        """
        vars(self).clear()

    # --- looking -------------------------------------------------------------------------------

    def honest(self) -> list[Host]:
        """Return the hosts that do not lie and whose key is good."""
        return [host for host in self.hosts if host.honest and not host.retired]

    def tip(self, index: int) -> int:
        """Return the newest round that a host decided; -1 while it is down."""
        machine = self.hosts[index].machine
        return -1 if machine is None else machine.chain.tip
