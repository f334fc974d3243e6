"""One peer as a process or a program: assembled, started, watched, stopped.

A peer under a supervisor takes orders from a pipe and ends when the pipe closes; on its own it
takes them from a console or a signal. Either way the same node runs.
"""

import asyncio
import json
import logging
import math
import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from peerformer import events
from peerformer.adversary import ATTACKS, corrupt, honest_part
from peerformer.errors import EvictedError, PeerformerError
from peerformer.full_disk import is_full
from peerformer.journal import read_journal
from peerformer.node.assemble import Assembled, PeerOptions, assemble
from peerformer.node.checkpoint import save_agreed
from peerformer.node.directory import PeerDirectory, SwarmDirectory, write_durably
from peerformer.node.evidence import save_evidence
from peerformer.node.journal import used_elsewhere
from peerformer.node.logs import log_to
from peerformer.node.memory import give_back_memory
from peerformer.node.standing import Standing
from peerformer.node.status import DISK_FULL, Tally, status_of, utilisation, write_status
from peerformer.node.surroundings import BY_HAND, Surroundings
from peerformer.node.transport import DialError
from peerformer.node.worker import leave_operators_to_the_bench
from peerformer.peer import Peer
from peerformer.protocol.backoff import Backoff
from peerformer.protocol.effects import Command, Report
from peerformer.protocol.identity import name_of
from peerformer.protocol.membership import quorum
from peerformer.protocol.printout import to_text
from peerformer.train.privacy import epsilon

STATUS_SECONDS = 0.25
ROUNDS_REMEMBERED = 16  # to tell how much of the time was spent training
LEAVE_SECONDS_MAX = 5.5  # SIGTERM must be over within ten, and
STOP_SECONDS_MAX = 2.0  # for the training step in hand; connections take as long again
MEASUREMENTS_KEPT = 512  # bits per byte of so many rounds are in the status

logger = logging.getLogger("peerformer.node")


class Running:
    """A peer that runs: what a console, a supervisor or a signal may ask of it."""

    def __init__(
        self,
        swarm: SwarmDirectory,
        directory: PeerDirectory,
        options: PeerOptions,
        on_event: Callable[[events.Event], None] = lambda _: None,
    ) -> None:
        """Note what to run."""
        self.swarm, self.directory, self.options = swarm, directory, options
        self.on_event = on_event
        self.tally = Tally()
        self.loss: float | None = None
        self.released = 0  # contributions made, before a restart too
        self.tokens_per_second: float | None = None
        self.bits_per_byte: dict[int, float] = {}
        self.by_source: dict[str, float] = {}  # bits per byte of the newest state, source by source
        self.rounds: deque[events.RoundCommitted] = deque(maxlen=ROUNDS_REMEMBERED)
        self.leaving = False
        self.is_disk_full = False

    async def start(self) -> str:
        """Assemble and start the peer; returns the address it listens on."""
        self.parts: Assembled = await assemble(
            self.swarm,
            self.directory,
            self.options,
            on_report=self._on_report,
            on_trained=self._on_trained,
            on_validated=self._on_validated,
        )
        self.node = self.parts.node
        self.node.room.on_full, self.node.room.on_room = self._on_full, self._on_room
        machine = self.node.peer.machine
        self.surroundings = Surroundings(
            self.node,
            self._event,
            self.parts.reachability.addresses,
            self.directory.path,
            STATUS_SECONDS,
            self.options.hours,
        )
        self._event(
            events.NodeStarted(
                peer=machine.me.hex(), name=name_of(machine.me), address=self.parts.address
            )
        )
        if self.parts.config.swarm.privacy_noise:
            self.released = self._released_before()
        self.standing = Standing(self.node, self.directory, self._event)
        try:
            self.standing.begin(self.node.transport.port)
        except EvictedError:
            await self.node.close()
            raise
        self.node.post(Command("start"))
        self.node.spawn(self._watch())
        self.node.spawn(give_back_memory())
        return self.parts.address

    @property
    def peer(self) -> Peer:
        """The peer, whether or not it lies."""
        return honest_part(self.node.peer)

    # --- what happens --------------------------------------------------------------------------

    def _event(self, event: events.Event) -> None:
        self.on_event(self.node.journal.append(event))

    def _on_report(self, report: Report) -> None:
        event, machine = report.event, self.node.peer.machine
        if report.evidence is not None and isinstance(event, events.PeerEvicted):
            blob_hash = getattr(report.evidence, "blob_hash", None)
            blob = self.node.blobs.get(blob_hash) if blob_hash else None
            chain_id = machine.chain.chain_id
            try:
                save_evidence(self.directory.path, event, chain_id, report.evidence, blob)
            except OSError as error:
                if not is_full(error):
                    raise
                logger.warning("no room for the evidence against %s", event.name)
        self.on_event(event)
        if isinstance(event, events.RoundCommitted):
            self.rounds.append(event)
        mine = getattr(event, "peer", None) == machine.me.hex()
        lies = getattr(self.node.peer, "attack", None) is not None
        if isinstance(event, events.KeyUsedElsewhere) and not lies:
            self.node.fail(used_elsewhere(event, self.directory.path))
        if mine and isinstance(event, events.PeerEvicted):
            self.node.fail(
                EvictedError(
                    "this peer was evicted by the others",
                    why=event.evidence,
                    more=f"peerformer log --about {event.name}",
                )
            )
        elif mine and isinstance(event, events.PeerLeft):
            self.node.stop("left the swarm")

    def _on_trained(self, round_number: int, loss: float, tokens: int) -> None:
        """On the worker's thread."""
        seconds = self.node.worker.training_seconds()
        event = events.Trained(round=round_number, loss=loss, seconds=seconds, tokens=tokens)

        def note() -> None:
            self.loss = loss if math.isfinite(loss) else None  # a user may not tell it
            self.released += 1
            if self.parts.config.swarm.privacy_noise:  # the journal forgets what is old
                write_durably(self.directory.released, str(self.released).encode())
            self._event(event)

        self.node.loop.call_soon_threadsafe(note)

    def _on_validated(self, number: int, loss: float, bits_per_byte: float, source: str) -> None:
        """On the worker's thread; `source` is empty for all the held-out text."""
        whole = events.Validated(step=number, loss=loss, bits_per_byte=bits_per_byte)
        part = events.SourceValidated(
            step=number, source=source, loss=loss, bits_per_byte=bits_per_byte
        )

        def note() -> None:
            if source:
                self.by_source[source] = bits_per_byte
            else:
                self.bits_per_byte[number] = bits_per_byte
                while len(self.bits_per_byte) > MEASUREMENTS_KEPT:
                    del self.bits_per_byte[next(iter(self.bits_per_byte))]
            self._event(part if source else whole)

        self.node.loop.call_soon_threadsafe(note)

    def _on_full(self, why: str) -> None:
        """On whatever thread met it."""
        event = events.DiskFull(where=str(self.directory.path), why=why)
        self.is_disk_full = True
        self.node.from_thread(self._event, event)

    def _on_room(self, seconds: float) -> None:
        """On whatever thread met it."""
        self.is_disk_full = False
        self.node.from_thread(self._event, events.DiskHasRoom(seconds=seconds))

    def status(self) -> dict[str, Any]:
        """Return the status object."""
        transport = self.node.transport
        extra = {
            "address": next(iter(self.parts.reachability.addresses()), ""),
            "addresses": list(self.peer.machine.neighbourhood.addresses),
            "reached_at": list(self.node.examiner.reached_at),
            "clock_off_seconds": self.standing.clock_off_seconds,
            "loss": self.loss,
            "utilisation": utilisation(self.rounds),
            "bits_per_byte": {str(n): value for n, value in self.bits_per_byte.items()},
            "bits_per_byte_by_source": self.by_source,
            "bytes_sent": transport.traffic.sent,
            "bytes_received": transport.traffic.received,
            "epsilon": self._epsilon(),
            "adversary": getattr(self.node.peer, "attack", None),
            "network": self.parts.reachability.status() | transport.status(),
            "time": time.time(),
            "paused_by": sorted(self.surroundings.paused_by),
            "hours": str(self.options.hours) if self.options.hours else None,
            "disk_bytes": self.surroundings.disk_bytes,
        }
        if self.is_disk_full:
            extra["state"] = DISK_FULL
        return status_of(self.peer, self.tally, extra)

    def _released_before(self) -> int:
        journal = read_journal(self.directory.journal)
        counted = sum(isinstance(event, events.Trained) for event in journal)
        try:
            return max(counted, int(self.directory.released.read_text()))
        except (OSError, ValueError):
            return counted

    def _epsilon(self) -> float | None:
        """Return what this peer has given away of its privacy, where the swarm cares for it."""
        swarm = self.parts.config.swarm
        if not swarm.privacy_noise:
            return None
        return epsilon(self.released, noise=swarm.privacy_noise, delta=swarm.privacy_delta)

    async def _watch(self) -> None:
        last = ""
        while not self.node.stopped.done():  # then the last word is that it has stopped
            status = self.status()
            now = json.dumps({k: v for k, v in status.items() if k not in ("time",)})
            if now != last and self._wrote(status):
                last = now
            self.surroundings.look()
            await asyncio.sleep(STATUS_SECONDS)

    def _wrote(self, status: dict[str, Any]) -> bool:
        try:
            write_status(self.directory.status, status)
        except OSError as error:
            if not is_full(error):
                raise
            return False
        return True

    async def bootstrap(
        self,
        address: str,
        expect: bytes | None,
        check: Callable[[str, bytes], None] = lambda *_: None,
    ) -> None:
        """Connect to one known address, again and again until somebody is connected.

        `check` may refuse whoever answers there by raising a PeerformerError, which stops the peer.
        """
        backoff = Backoff()
        while not self.node.connections:
            try:
                connection = await self.node.transport.dial(address, expect=expect)
                check(address, connection.peer_id)
                self.node.on_connection(connection)
                return
            except DialError as error:
                logger.info("cannot reach %s: %s", address, error)
                await asyncio.sleep(backoff.failed(random.random()))

    # --- orders --------------------------------------------------------------------------------

    def lie(self, attack: str) -> None:
        """Become an adversary from the next round on."""
        assert attack in ATTACKS
        number = self.peer.machine.collection.number
        liar = corrupt(self.peer, attack, from_round=number)
        self.node.peer = liar
        self.node.worker.work_for(liar)

    def pause(self) -> None:
        """Train no more until `resume`."""
        self.surroundings.pause(BY_HAND)

    def resume(self) -> None:
        """Train again."""
        self.surroundings.resume(BY_HAND)

    def stop(self) -> None:
        """Stop as the options say: leave the swarm, or stay a member who will be back."""
        if self.options.stays:
            self.node.stop("stopped, and still a member")
        else:
            self.leave()

    def leave(self) -> None:
        """Leave politely; stop when the others have let me go, or after a while anyway."""
        if self.leaving:
            self.node.stop("stopped at once")
            return
        self.leaving = True
        self.node.post(Command("leave"))
        self.node.loop.call_later(LEAVE_SECONDS_MAX, self._go_undecided)

    def _go_undecided(self) -> None:
        """Stop before a round has decided that this peer leaves: rounds may take hours."""
        machine = self.peer.machine
        voters = set(machine.chain.members.voters)
        others = voters & machine.neighbourhood.greeted - {machine.me}
        if machine.me not in voters or len(others) >= quorum(len(voters)):
            self.node.stop("asked to be let go, and the others decide it in a round to come")
        else:
            self.node.stop("still a member: without its vote the others are too few to decide")

    def save_checkpoint(self) -> Path:
        """Save the agreed model as a loadable checkpoint; on the worker's thread."""
        return save_agreed(self.swarm, self.peer.machine.chain, self.parts)

    def print_state(self) -> Path:
        """Write the state of the protocol as text, without any secret; returns where."""
        write_durably(self.directory.printout, to_text(self.peer.machine).encode())
        return self.directory.printout

    async def run_until_stopped(self) -> str:
        """Wait for the end; returns the reason."""
        machine = self.node.peer.machine
        reason = "failed"
        try:
            reason = await self.node.stopped
            return reason
        except PeerformerError as error:
            reason = error.what
            raise
        finally:
            self._event(
                events.NodeStopped(peer=machine.me.hex(), name=name_of(machine.me), reason=reason)
            )
            self._wrote({**self.status(), "state": f"stopped: {reason}"})
            await self.node.close(STOP_SECONDS_MAX)


def run_supervised(swarm: Path, name: str, options: PeerOptions, control: Connection) -> None:
    """Be one peer of a supervised swarm: the entry of a forked process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which tells us
    directory = SwarmDirectory(swarm).peer(name).make()
    log_to(directory.log)
    leave_operators_to_the_bench()
    try:
        run_loop(_supervised(SwarmDirectory(swarm), directory, options, control))
    except EvictedError:
        os._exit(EvictedError.exit_code)
    except PeerformerError as error:
        logger.error("%s", error)
        os._exit(error.exit_code)
    except BaseException:
        logger.exception("the peer failed")
        os._exit(1)


def run_loop(coroutine: Any) -> Any:
    """Run a coroutine on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)


async def _supervised(
    swarm: SwarmDirectory, directory: PeerDirectory, options: PeerOptions, control: Connection
) -> None:
    running = Running(swarm, directory, options)
    address = await running.start()
    node = running.node
    control.send(("listening", address, running.peer.machine.me))

    def answer(order: str, path: Path) -> None:
        control.send((order, str(path)))

    def on_order() -> None:
        try:
            order = control.recv()
        except (EOFError, OSError):
            node.loop.remove_reader(control.fileno())
            node.stop("the supervisor is gone")
            return
        match order:
            case ("bootstrap", address, peer):
                node.spawn(running.bootstrap(address, peer))
            case ("lie", attack):
                running.lie(attack)
            case ("leave",):
                running.leave()
            case ("stop",):
                node.stop("stopped")
            case ("cut", peers):
                node.cut(peers)
            case ("pause",):
                running.pause()
            case ("resume",):
                running.resume()
            case ("checkpoint",):
                node.worker.submit(lambda: answer("checkpoint", running.save_checkpoint()))
            case ("state",):
                answer("state", running.print_state())

    node.loop.add_reader(control.fileno(), on_order)
    await running.run_until_stopped()
