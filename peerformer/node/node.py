"""The event loop of one peer: IO -> event -> peer.handle -> effect -> IO.

The only place where a peer touches network, clock and disk. Events are handled one at a time, and
their effects carried out in order: a `Persist` is durable before the `Send` after it leaves.
Tensor work goes to the worker's thread, transfers and dialling to tasks; both come back as
events.

If the disk is full, what could not be persisted and all effects after it are held back and tried
again; until then nothing is handled. Packets that arrive meanwhile are lost, as on a bad link; all
other events wait, of which there are no more than timers, works and connections.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from peerformer import events
from peerformer.full_disk import is_full
from peerformer.journal import Journal
from peerformer.node.blobs import BlobStore
from peerformer.node.clocks import running_seconds
from peerformer.node.examining import Examiner
from peerformer.node.fetching import Fetcher
from peerformer.node.journal import DurableStore
from peerformer.node.room import Room
from peerformer.node.syncing import KeptChunks
from peerformer.node.transport import Connection, ConnectionClosed, DialError, Transport
from peerformer.node.worker import Worker
from peerformer.peer import Participant
from peerformer.protocol.conduct import ROUNDS_SERVED
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
    Reveal,
    Send,
    SetTimer,
    StartWork,
    TimerFired,
    Work,
    WorkFinished,
)
from peerformer.protocol.identity import name_of
from peerformer.protocol.messages import pack


class Node:
    """One running peer. Everything but the worker's thread happens on one event loop."""

    def __init__(
        self,
        peer: Participant,
        *,
        transport: Transport,
        store: DurableStore,
        blobs: BlobStore,
        journal: Journal,
        room: Room | None = None,
        threads: int = 1,
        on_report: Callable[[Report], None] = lambda _: None,
        give_way: Callable[[], None] = lambda: None,
        on_frame: Callable[[bytes, bytes], None] | None = None,
    ) -> None:
        """Join the parts; `run` starts them."""
        self.peer, self.transport, self.store, self.blobs = peer, transport, store, blobs
        self.journal, self.on_report = journal, on_report
        self.room = room or Room()
        self.on_frame = on_frame
        self.connections: dict[bytes, Connection] = {}
        self.stopped: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.loop = asyncio.get_running_loop()
        self.started = time.time()
        self._began = running_seconds()
        self._set_forward_seconds = 0.0
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._events: list[Event] = []
        self._blob_rounds: dict[int, set[bytes]] = {}
        self._handling = False
        self._held: list[Effect] = []  # since the disk is full
        self.cut_off: frozenset[bytes] = frozenset()  # peers, in a demonstration of partitions
        self.kept_chunks = KeptChunks(None, self.room)  # of a state that is being fetched
        self.examiner = Examiner(transport, self.spawn, self.connections)
        self.fetcher = Fetcher(
            transport, blobs, peer.machine.chain.chain_id, self.addresses_of, self._on_lie
        )
        self.worker = Worker(
            peer,
            lambda finished: self.from_thread(self.post, finished),
            lambda error: self.from_thread(self.fail, error),
            threads=threads,
            give_way=give_way,
        )

    def now(self) -> float:
        """Return seconds since 1970 on a clock that never goes back, whatever the system's does."""
        return self.started + running_seconds() - self._began + self._set_forward_seconds

    def set_forward(self, seconds: float) -> None:
        """Follow a wall clock that was set forward: what others date is dated by theirs."""
        self._set_forward_seconds += max(0.0, seconds)

    # --- events in -----------------------------------------------------------------------------

    def from_thread(self, callback: Callable[..., None], argument: object) -> None:
        """Call back on the loop, from any thread."""
        try:
            self.loop.call_soon_threadsafe(callback, argument)
        except RuntimeError:
            return  # the loop has ended: nobody waits for the result any more

    def post(self, event: Event) -> None:
        """Handle an event and what it brings, in order."""
        if self._held and isinstance(event, Received):
            return
        self._events.append(event)
        self._turn()

    def _turn(self) -> None:
        if self._handling or self.stopped.done():
            return
        self._handling = True
        try:
            while self._events and not self._held and not self.stopped.done():
                self._carry_all_out(self.peer.handle(self._events.pop(0), self.now()))
        except Exception as error:  # a bug of ours, or a disk that failed: stop before worse
            self.fail(error)
        finally:
            self._handling = False

    def _carry_all_out(self, effects: list[Effect]) -> None:
        """Carry effects out in order, up to one that the disk has no room for."""
        for index, effect in enumerate(effects):
            try:
                self._carry_out(effect)
            except Exception as error:
                if not is_full(error):
                    raise
                self._held = effects[index:]
                self.room.wait_for(self, error)
                self.loop.call_later(self.room.retry_seconds, self._try_again)
                return

    def _try_again(self) -> None:
        if self.stopped.done():
            return
        held, self._held = self._held, []
        try:
            self._carry_all_out(held)
        except Exception as error:
            self.fail(error)
        if not self._held:
            self.room.found(self)
            self._turn()

    def fail(self, error: BaseException) -> None:
        """Stop because of an error of ours."""
        if not self.stopped.done():
            self.stopped.set_exception(error)

    def stop(self, reason: str) -> None:
        """Stop in an orderly way."""
        if not self.stopped.done():
            self.stopped.set_result(reason)

    def _trust(self, connection: Connection) -> None:
        """Take large frames of who greeted, and let no member wait for strangers."""
        if connection.peer_id in self.peer.machine.neighbourhood.greeted:
            connection.allow_large_frames()
        connection.waits_its_turn = connection.inbound and not self.is_member(connection.peer_id)

    def serve_blobs(self) -> None:
        """Let the transport serve what this node holds, to those who may fetch."""
        self.transport.may_fetch, self.transport.is_member = self.may_fetch, self.is_member
        self.transport.store = self.blobs

    def may_fetch(self, peer: bytes) -> bool:
        """Whether a peer may fetch blobs here: it greeted, and is not banned."""
        machine = self.peer.machine
        return peer in machine.neighbourhood.greeted and peer not in machine.chain.members.banned

    def is_member(self, peer: bytes) -> bool:
        """Whether a peer is a member, with or without a vote."""
        return peer in self.peer.machine.neighbourhood.book.members

    # --- effects out ---------------------------------------------------------------------------

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Persist(records, deleted):
                self.store.persist(records, deleted)
            case Send(peer, packet):
                connection = self.connections.get(peer)
                if connection is not None:
                    connection.send(pack(packet))
            case SetTimer(name, seconds):
                self._set_timer(name, seconds)
            case StartWork(work):
                self._start(work)
            case Disconnect(peer, reason, farewell):
                if farewell is not None:
                    self.examiner.dismiss(peer, reason, farewell)
                self._disconnect(peer, reason)
            case Report(event):
                self.journal.append(event)
                if isinstance(event, events.RoundCommitted):
                    self._drop_old_blobs(event.round)
                self.on_report(effect)

    def _drop_old_blobs(self, decided: int) -> None:
        oldest = min(decided - ROUNDS_SERVED + 1, self.peer.machine.sync.oldest_needed)
        for number in [n for n in self._blob_rounds if n < oldest]:
            for key in self._blob_rounds.pop(number):
                self.blobs.discard(key)

    def _set_timer(self, name: str, seconds: float) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = self.loop.call_later(seconds, self.post, TimerFired(name))

    def _start(self, work: Work) -> None:
        match work:
            case Reveal(number, key):
                self._blob_rounds.setdefault(number, set()).add(key)
                self.blobs.reveal(key)
            case FetchBlob():
                self._blob_rounds.setdefault(work.round, set()).add(work.blob_hash)
                self.spawn(self._fetch_blob(work))
            case Inspect():
                self._blob_rounds.setdefault(work.exhibit.round, set()).add(work.exhibit.blob_hash)
                self.spawn(self._inspect(work))
            case FetchState():
                self.spawn(self._fetch_state(work))
            case Dial():
                self.spawn(self._dial(work))
            case _:
                self.worker.submit(work)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a task that belongs to this node; an exception in it stops the node."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error)

    # --- transfers -----------------------------------------------------------------------------

    def addresses_of(self, peer: bytes) -> tuple[str, ...]:
        """Return where a peer is reached, as its signed record says."""
        entry = self.peer.machine.neighbourhood.book.entries.get(peer)
        return entry.addresses if entry is not None else ()

    def relays_of(self, peer: bytes) -> tuple[str, ...]:
        """Return where a peer of my swarm relays for others, as its signed record says."""
        entry = self.peer.machine.neighbourhood.book.entries.get(peer)
        return entry.relays if entry is not None and self.may_fetch(peer) else ()

    def announce(self, addresses: tuple[str, ...]) -> None:
        """Tell all who are connected where I am reached from now on."""
        self.peer.machine.neighbourhood.set_addresses(addresses)
        self.post(Command("announce"))

    async def _fetch_blob(self, work: FetchBlob) -> None:
        self.post(WorkFinished(work, await self.fetcher.blob(work)))

    async def _inspect(self, work: Inspect) -> None:
        wanted = work.exhibit
        fetch = FetchBlob(wanted.round, wanted.author, wanted.blob_hash, wanted.size, work.sources)
        if await self.fetcher.blob(fetch):
            self.worker.submit(work)
        else:
            self.post(WorkFinished(work, None))

    async def _fetch_state(self, work: FetchState) -> None:
        data = await self.fetcher.state(work, self.kept_chunks, self._tell)
        if data is None:
            self.post(WorkFinished(work, False))
            return

        def install() -> None:
            installed = self.peer.bench.install(work.round, work.state_root, data)
            self.from_thread(self.post, WorkFinished(work, installed))

        self.worker.submit(install)

    def _on_lie(self, peer: bytes, reason: str) -> None:
        self._tell(events.Misbehaved(peer=peer.hex(), name=name_of(peer), reason=reason))

    def _tell(self, event: events.Event) -> None:
        self.on_report(Report(self.journal.append(event)))

    # --- connections ---------------------------------------------------------------------------

    async def _dial(self, work: Dial) -> None:
        try:
            self.on_connection(await self.transport.dial(work.addresses, expect=work.peer))
        except DialError:
            self.post(WorkFinished(work, False))
        else:
            self.post(WorkFinished(work, True))

    def on_connection(self, connection: Connection) -> None:
        """Take a connection in; of two with one peer one stays, the same at both ends.

        That is the one without a relay, or else the one that the lower id dialled.
        """
        peer, me = connection.peer_id, self.peer.machine.me
        if peer == me or peer in self.cut_off or self.stopped.done():
            self.spawn(connection.close("not needed"))
            return
        present = self.connections.get(peer)
        if present is not None:
            preferred = connection.inbound == (peer < me)
            if present.relayed != connection.relayed:
                keeps = connection.relayed
            else:
                keeps = not preferred and present.inbound != connection.inbound
            if keeps:
                self.spawn(connection.close("another connection stays"))
                return
            self.spawn(present.close("another connection stays"))
            self.post(Disconnected(peer))  # what was under way on the old one may be lost
        self.connections[peer] = connection
        self.post(Connected(peer, connection.address, outbound=not connection.inbound))
        self.examiner.met(connection)
        self._trust(connection)
        self.spawn(self._receive(connection))

    async def _receive(self, connection: Connection) -> None:
        try:
            while True:
                frame = await connection.receive()
                if self.on_frame is not None:
                    self.on_frame(connection.peer_id, frame)
                if not self.examiner.take(connection, frame):
                    self.post(Received(connection.peer_id, frame))
                    self._trust(connection)
        except ConnectionClosed:
            if self.connections.get(connection.peer_id) is connection:
                del self.connections[connection.peer_id]
                self.examiner.parted(connection.peer_id)
                self.post(Disconnected(connection.peer_id))

    def cut(self, peers: Collection[bytes]) -> None:
        """Have no connection with these peers until others are given; none heals."""
        self.cut_off = frozenset(peers)
        for peer in self.cut_off & self.connections.keys():
            self.spawn(self.connections.pop(peer).close("cut off"))
            self.post(Disconnected(peer))
        self.post(Command("look around"))

    def drop_connections_from(self, hosts: Collection[str]) -> None:
        """Close the connections from addresses that this machine no longer has: they are dead."""
        for peer, connection in list(self.connections.items()):
            if connection.local_host in hosts:
                del self.connections[peer]
                self.spawn(connection.close("this machine moved"))
                self.post(Disconnected(peer))

    def _disconnect(self, peer: bytes, reason: str) -> None:
        connection = self.connections.pop(peer, None)
        if connection is not None:
            self.examiner.parted(peer)
            self.spawn(connection.close(reason))
            self._events.append(Disconnected(peer))

    # --- the end -------------------------------------------------------------------------------

    async def close(self, stop_seconds_max: float = 10.0) -> None:
        """Stop everything; what was decided is saved already.

        A training step that lasts longer than `stop_seconds_max` is left to end with the process.
        """
        for timer in self._timers.values():
            timer.cancel()
        self.room.stop()
        await asyncio.to_thread(self.worker.stop, stop_seconds_max)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.transport.close()
        self.store.close()
        self.journal.close()
