"""Hard schedules: who hears what, and who falls when, so that a forgotten rule costs its round.

Random loss seldom hits the few orders of messages that a lock, a promise or a later view is there
for. Each schedule here is one that an asynchronous network may play at any time, played on purpose
in rounds that suit it, and over before the world heals.
"""

from collections.abc import Callable
from random import Random

from peerformer.protocol.chain import leader_of
from peerformer.protocol.effects import FetchBlob, FetchState
from peerformer.protocol.messages import (
    Certified,
    Commit,
    GaveUp,
    Headers,
    Packet,
    Prepare,
    Prepared,
    Proposed,
    Said,
    TimedOut,
)
from peerformer.simulate.host import Host
from peerformer.simulate.network import Parcel
from peerformer.simulate.world import World

HELD_SECONDS = 120.0  # a schedule that leads nowhere is given up
VIEWS_SECONDS = 75.0  # long enough for a view change or two
DECIDED_SECONDS = 3.0  # from the votes of a view to its decision
RESTARTED_SECONDS = 12.0


class Schedules:
    """One schedule at a time in a world, drawn when a round's first vote is sent."""

    def __init__(self, world: World, random: Random, honest: list[int]) -> None:
        """Play them among the honest founders."""
        self.world, self.random, self.honest = world, random, honest
        self.round, self.view, self.victim = 0, 0, honest[0]
        self.stops: Callable[[int, Packet], bool] | None = None  # from whomever, to this host
        self.on_said: Callable[[Host, str], None] = lambda host, kind: None
        self.on_decided: Callable[[Host], None] = lambda host: None
        self.played = 0
        self.drawn_for = (0, 0)  # round and view
        self._ends_at = 0.0
        world.network.stops = self._stops

    def _stops(self, _: int, target: int, parcel: Parcel) -> bool:
        if self.stops is None or isinstance(parcel, FetchBlob | FetchState):
            return False
        return self.stops(target, parcel)

    def end(self) -> None:
        """Let everything pass again."""
        if self.stops is not None:
            self.stops = None
            self.on_said = lambda host, kind: None
            self.on_decided = lambda host: None
            self.world.network.join()

    def said(self, host: Host, kind: str) -> None:
        """Go on with the schedule that is played, or begin one."""
        machine = host.machine
        if machine is None:
            return
        if self.stops is not None:
            self.on_said(host, kind)
            return
        number, view = machine.ballot.number, machine.ballot.consensus.view
        if kind == "prepare" and (number, view) > self.drawn_for:
            self.drawn_for = (number, view)
            next_leader = leader_of(machine.chain.leaders(), number, view + 1)
            is_led_by_liar = any(not host.honest for host in self.world.by_id[next_leader])
            if is_led_by_liar and self.random.random() < 0.8:
                self.begin(self.one_decides, number, view)
            elif self.random.random() < 0.3:
                plays = (self.one_decides, self.all_restart, self.one_goes_ahead)
                self.begin(self.random.choice(plays), number, view)

    def begin(self, play: Callable[[], None], number: int, view: int) -> None:
        """Play a schedule in a view of the open round, around somebody honest."""
        self.played += 1
        self.round, self.view = number, view
        self.victim = self.random.choice(self.honest)
        play()
        self._end_in(HELD_SECONDS)

    def _end_in(self, seconds: float) -> None:
        ends_at = self._ends_at = self.world.now + seconds

        def end() -> None:
            if ends_at == self._ends_at:
                self.end()

        self.world.at(seconds, end)

    def _is_of_view(self, vote: Prepare | Commit) -> bool:
        return vote.round == self.round and vote.view == self.view

    def _others(self) -> list[int]:
        return [index for index in self.honest if index != self.victim]

    # --- the schedules -------------------------------------------------------------------------

    def one_decides(self) -> None:
        """All lock; one alone sees the commits and decides; then nobody hears of it.

        In the next view only the locks remember. Half of the time those who hold them fall first.
        """

        def stops(target: int, packet: Packet) -> bool:
            if target == self.victim:
                return False
            match packet:
                case Said(envelope):
                    vote = envelope.statement
                    return isinstance(vote, Commit) and self._is_of_view(vote)
                case Certified(header):
                    return bool(header.round == self.round)
                case Prepared(certificate):
                    return certificate.commits and certificate.round == self.round
                case Headers(items):
                    return any(item.header.round == self.round for item in items)
            return False

        def stops_votes(target: int, packet: Packet) -> bool:
            match packet:
                case Said(envelope):
                    vote = envelope.statement
                    return isinstance(vote, Prepare | Commit) and self._is_of_view(vote)
                case Prepared(certificate):
                    return bool(certificate.view == self.view)
            return stops(target, packet)

        def voted_again(host: Host, kind: str) -> None:
            machine = host.machine
            if kind == "commit" and machine and machine.ballot.consensus.view > self.view:
                self._end_in(DECIDED_SECONDS)

        def decided(host: Host) -> None:
            if host.index != self.victim or self.world.tip(host.index) != self.round:
                return
            self.on_decided = lambda _: None
            everyone = set(range(len(self.world.hosts)))
            self.world.network.split({self.victim}, everyone - {self.victim})
            if self.random.random() < 0.5:
                self._fell(self._others())
                self.stops = stops_votes  # nothing but what they stored reminds them
            self._end_in(VIEWS_SECONDS)
            self.on_said = voted_again

        self.stops, self.on_decided = stops, decided

    def all_restart(self) -> None:
        """No vote arrives until all have given the view up; all fall; then the votes arrive."""
        gave_up: set[int] = set()

        def stops_votes(_: int, packet: Packet) -> bool:
            match packet:
                case Said(envelope):
                    vote = envelope.statement
                    return isinstance(vote, Prepare | Commit) and self._is_of_view(vote)
                case Prepared(certificate):
                    return bool(certificate.round == self.round)
                case GaveUp(certificate):
                    return bool(certificate.round == self.round)
                case TimedOut():
                    return True
            return False

        def stops_timeouts(_: int, packet: Packet) -> bool:
            return isinstance(packet, TimedOut | GaveUp)

        def said(host: Host, kind: str) -> None:
            if kind == "timeout" and host.index in self.honest:
                gave_up.add(host.index)
            if gave_up >= set(self.honest):
                self.on_said = lambda host, kind: None
                self._fell(self.honest)
                self.stops = stops_timeouts
                self._end_in(RESTARTED_SECONDS)

        self.stops, self.on_said = stops_votes, said

    def one_goes_ahead(self) -> None:
        """One alone sees that a view is given up, and gives up the next one as well."""

        def stops(target: int, packet: Packet) -> bool:
            if isinstance(packet, Said):  # nothing is decided in this view
                vote = packet.envelope.statement
                return isinstance(vote, Commit | Prepare) and self._is_of_view(vote)
            proof = isinstance(packet, TimedOut | GaveUp | Proposed)
            return target != self.victim and proof

        def said(host: Host, kind: str) -> None:
            machine = host.machine
            ahead = machine is not None and machine.ballot.consensus.view > self.view
            if kind == "timeout" and host.index == self.victim and ahead:
                self._end_in(1.0)

        self.stops, self.on_said = stops, said

    def _fell(self, indices: list[int]) -> None:
        """Power fails where what was just said is on its way; it comes back in a moment."""

        def fall() -> None:
            for index in indices:
                self.world.crash(index)

        def rise() -> None:
            for index in indices:
                host = self.world.hosts[index]
                if host.peer is None and not host.disk.full:
                    self.world.boot(index)

        self.world.at(0.0, fall)
        self.world.at(1.0, rise)
