"""A peer of a swarm inside a user's program: what `Swarm` and `Coordinator` have in common.

It votes, checks, serves and fetches on threads of its own, whatever the program does; closing it
stops it in order. What is trained and agreed on is the business of the two classes that build on
it.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict

from peerformer.errors import ConfigError, NoQuorum, SwarmError
from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import SwarmDirectory
from peerformer.node.inviting import uses_of
from peerformer.node.process import Running
from peerformer.protocol.checkpoint import Checkpoint
from peerformer.protocol.effects import TimerFired
from peerformer.protocol.light_client import RoundCertificate
from peerformer.protocol.messages import AskHeaders, pack
from peerformer.protocol.ticket import DAY_SECONDS, PLACES_MAX, Invitation, Place, write_ticket
from peerformer.swarm.beginning import ME
from peerformer.swarm.handover import Handover
from peerformer.swarm.hosting import Host, Known
from peerformer.swarm.opinion import Check, Score

TIMEOUT_SECONDS = 600.0  # as long as a local training may last, unless the founder says otherwise
LOOK_SECONDS = 0.1
LINGER_SECONDS = 3.0  # for others who lack the end of the last round
ADDRESSES_MAX = 2  # of this peer in a ticket; the rest are for other peers
LISTEN = "127.0.0.1:0"  # this machine only, any port

logger = logging.getLogger("peerformer.swarm")


class Own(TypedDict, total=False):
    """What is one peer's alone, and need not be alike; all of it is optional.

    Attributes:
        listen: host:port; 0.0.0.0 opens it to others, port 0 is any that is free.
        guest: contribute without a vote.
        threads: of the node's own tensor work; 1 unless given, since the program trains beside it.
        timeout_seconds: the longest wait for the swarm in any call, before `NoQuorum`.
        check: update by name -> why it is refused, or None; see docs/api.md.
        score: module -> loss on held-out data that is the same for all peers; see docs/api.md.
    """

    listen: str
    guest: bool
    threads: int
    timeout_seconds: float
    check: Check
    score: Score


def note(text: str) -> None:
    """Tell whoever listens to the log what goes on."""
    logger.info(" ".join(text.split()))


def directory_of(path: str | Path | None) -> Path | None:
    """Return a path as one."""
    return None if path is None else Path(path)


class Membership:
    """A peer that runs beside the program. Use it in a `with`, or call `close`."""

    def __init__(
        self, directory: SwarmDirectory, handover: Handover, own: Own, known: Known
    ) -> None:
        """Start the node and wait for the agreed state; see `found`, `join` and `resume`."""
        self.directory = directory.path
        self.timeout_seconds = own.get("timeout_seconds", TIMEOUT_SECONDS)
        self._handover = handover
        host, port = _listening(own.get("listen", LISTEN))
        options = PeerOptions(
            host,
            port,
            threads=own.get("threads", 1),
            guest=own.get("guest", False),
            validates=False,
            learner=handover,
        )
        self._host = Host(directory, directory.peer(ME), options, self._wake)
        self._closed = False
        self.address = self._host.start(known)
        try:
            wait = self._patience("the agreed state did not arrive")
            with handover.changed:
                while not handover.reached:
                    wait()
        except BaseException:
            self._host.stop(leave=False)
            raise

    # --- looking ---------------------------------------------------------------------------------

    @property
    def agreed_round(self) -> int:
        """The newest round whose outcome this peer holds."""
        return self._handover.round

    @property
    def state_root(self) -> str:
        """The root of the newest agreed state, in hexadecimal: the same on all honest peers."""
        return self._ask(lambda running: running.peer.machine.chain.state_root.hex())

    def status(self) -> dict[str, Any]:
        """Return how this peer and the swarm are doing, as `peerformer status --json` says it."""
        found = self._ask(lambda running: running.status())
        refusals = [(r.round, r.reason) for r in self._handover.opinion.refusals]
        return {**found, "refused_by_check": refusals}

    def certificate(self, round_number: int) -> RoundCertificate | None:
        """Return the certificate of one of the last 64 rounds; None if it is not decided here."""

        def find(running: Running) -> RoundCertificate | None:
            chain = running.peer.machine.chain
            item, members = chain.item(round_number), chain.past_members.get(round_number)
            if item is None or members is None:
                return None
            return RoundCertificate(chain.chain_id, members, item.header, item.certificate)

        return self._ask(find)

    # --- with others -----------------------------------------------------------------------------

    def invite(self, *, address: str | None = None, days: int = 14, uses: int | None = None) -> str:
        """Return a ticket for `join`, good for so many days.

        Args:
            address: host:port at which others reach this peer, if not the one it listens on.
            days: how long the ticket is good for.
            uses: newcomers whom it lets in, 1 unless given; only where admission is by invitation.

        Raises:
            ConfigError: if the swarm does not count whom a ticket lets in, or lets nobody in.
            NoQuorum: if the swarm decides no round that a ticket could name.
        """
        with self._idle():
            self._until(lambda running: bool(running.peer.machine.chain.items), "no round")
            return self._ask(lambda running: self._ticket(running, address, days, uses))

    def _ticket(self, running: Running, address: str | None, days: int, uses: int | None) -> str:
        machine = running.peer.machine
        chain, header = machine.chain, machine.chain.items[-1].header
        mine = (address,) if address else machine.neighbourhood.addresses[:ADDRESSES_MAX]
        places = [Place(machine.me, here.encode()) for here in mine]
        for peer in chain.members.voters:
            if peer != machine.me and (found := running.node.addresses_of(peer)):
                places.append(Place(peer, found[0].encode()))
        now = int(time.time())
        invitation = Invitation(
            chain.chain_id,
            Checkpoint(header.round, header.digest, header.next_members_hash),
            issued=now,
            expires=now + days * DAY_SECONDS,
            places=tuple(places[:PLACES_MAX]),
            uses=uses_of(chain.genesis, uses, votes=machine.me in chain.members.voters),
            serial=secrets.randbits(64),
        )
        return write_ticket(machine.keys, invitation)

    def wait_for(self, peers: int, *, timeout_seconds: float | None = None) -> int:
        """Wait until so many peers vote; returns the first round of so many, the same on all.

        Rounds go by meanwhile to which this peer contributes nothing.

        Raises:
            NoQuorum: if they are not there in time.
        """

        def first(running: Running) -> int:
            chain = running.peer.machine.chain
            sets = {**chain.past_members, chain.tip + 1: chain.members}
            few = [n for n, members in sets.items() if len(members.voters) < peers]
            enough = [n for n in sets if n > max(few, default=0)]
            ready = running.peer.machine.is_member and running.peer.machine.sync.ready
            return min(enough, default=0) if ready else 0

        with self._idle():
            return self._until(first, f"{peers} voters were not there", timeout_seconds)

    # --- the end ---------------------------------------------------------------------------------

    def close(self, *, leave: bool = False) -> None:
        """Stop this peer's node; it can be resumed. With `leave` it gives up its membership.

        It stays for a moment if others still lack the end of the last round. Closing what is
        closed does nothing.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if not leave and not self._host.ended:
                self._linger()
        finally:
            self._host.stop(leave=leave)

    def _linger(self) -> None:
        """Wait a moment until the voters that are connected have decided what this peer has."""
        tip = self._host.ask(lambda running: running.peer.machine.chain.tip)
        deadline = time.monotonic() + LINGER_SECONDS

        def behind(running: Running) -> bool:
            machine = running.peer.machine
            here = machine.neighbourhood.greeted & set(machine.chain.members.voters)
            late = [peer for peer in here if machine.sync.claims.get(peer, 0) < tip]
            for peer in late:
                if (connection := running.node.connections.get(peer)) is not None:
                    connection.send(pack(AskHeaders(max(1, tip))))  # the answer says its tip
            return bool(late)

        while time.monotonic() < deadline and self._host.ask(behind):
            time.sleep(LOOK_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:  # what went wrong is more urgent than others' last round
            self._closed = True
            self._host.stop(leave=False)
        self.close()

    # --- waiting ---------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise SwarmError(
                "this peer was closed",
                where=str(self.directory),
                hint=f'{type(self).__name__}.resume("{self.directory}", ...) goes on',
            )
        self._host.check()
        failure, self._handover.opinion.failure = self._handover.opinion.failure, None
        if failure is not None:
            raise failure

    def _ask(self, question: Callable[[Running], Any]) -> Any:
        self._check_open()
        return self._host.ask(question)

    def _wake(self) -> None:
        with self._handover.changed:
            self._handover.changed.notify_all()

    def _patience(self, what: str, seconds: float | None = None) -> Callable[[], None]:
        """Return a wait of a moment, to be called holding `changed`, that ends in NoQuorum."""
        longest = self.timeout_seconds if seconds is None else seconds
        deadline = time.monotonic() + longest

        def wait() -> None:
            self._host.check()
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._no_quorum(what, longest)
            self._handover.changed.wait(min(left, LOOK_SECONDS))

        return wait

    def _no_quorum(self, what: str, seconds: float) -> NoQuorum:
        status = self._host.ask(lambda running: running.status())
        voters = [member for member in status["members"] if member["role"] == "voter"]
        here = sum(member["connected"] for member in voters)
        return NoQuorum(
            f"{what} within {seconds:g} s, and nothing was applied",
            where=str(self.directory),
            why=f"{here} of {len(voters)} voters are connected, {status['quorum']} are needed;"
            f" this peer is {status['state']}, round {status['round']}",
            hint="call it again: it goes on waiting; or see status()",
        )

    def _until(
        self, question: Callable[[Running], Any], what: str, seconds: float | None = None
    ) -> Any:
        wait = self._patience(what, seconds)
        while not (answer := self._ask(question)):
            self._ask(_hurry)
            with self._handover.changed:
                wait()
        return answer

    @contextmanager
    def _idle(self) -> Iterator[None]:
        self._handover.idle = True
        try:
            yield
        finally:
            self._handover.idle = False


def _hurry(running: Running) -> None:
    """Let a round without contributions end, where nobody has contributed to the last ones either.

    Else all would wait for newcomers that wait for others, as long as a training may last.
    """
    machine = running.peer.machine
    current, latest = machine.collection, machine.chain.items[-2:]
    quiet = not any(item.header.contributions or item.header.refused for item in latest)
    if quiet and current.trained and not current.contributions:
        running.node.post(TimerFired("commit"))


def _listening(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(
            f"{listen!r:.80} is no place to listen", hint='listen="0.0.0.0:8888", for example'
        )
    return host.strip("[]"), int(port)
