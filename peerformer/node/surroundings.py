"""What happens around a running peer, noticed, told once, and acted upon.

A machine sleeps, a clock is set, a cable is pulled, an address changes, voters go, the hours in
which to train begin and end. None of it is an error: each is one event, in words that say what this
peer does about it. The protocol needs none of it to be safe; it only comes back sooner.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psutil

from peerformer import events
from peerformer.node.clocks import ClockWatch, Reading, read_clocks
from peerformer.node.directory import bytes_under
from peerformer.node.hours import Hours
from peerformer.node.node import Node
from peerformer.protocol.effects import Command
from peerformer.protocol.membership import quorum

ADDRESSES_SECONDS = 2.0  # between two looks at the addresses of the machine
DISK_SECONDS = 5.0  # between two looks at how much is on the disk
REDIAL_SECONDS = 2.0  # between two rounds of dialling while nobody is connected
BY_HAND, BY_HOURS = "by hand", "outside its hours"


@dataclass(slots=True)
class Surroundings:
    """Looks around whenever `look` is called, a few times a second."""

    node: Node
    tell: Callable[[events.Event], None]
    addresses: Callable[[], tuple[str, ...]]  # where others reach this peer, as of now
    directory: Path
    every_seconds: float
    hours: Hours | None = None
    clocks: Callable[[], Reading] = read_clocks
    hosts: Callable[[], frozenset[str]] = lambda: machine_hosts()
    local_time: Callable[[], datetime] = datetime.now
    disk_bytes: int = 0
    paused_by: set[str] = field(default_factory=set)
    _watch: ClockWatch = field(init=False)
    _hosts: frozenset[str] = field(init=False)
    _addresses: tuple[str, ...] = field(init=False)
    _in_hours: bool | None = None
    _looked_at: dict[str, float] = field(default_factory=dict)  # monotonic seconds, by what
    _greeted: int = 0
    _lost_at: float | None = None
    _had_quorum: bool = False
    _without_since: float | None = None

    def __post_init__(self) -> None:
        """Remember how it is now."""
        self._watch = ClockWatch(self.clocks(), self.every_seconds)
        self._hosts = self.hosts()
        self._addresses = self.addresses()

    def look(self) -> None:
        """Notice what has changed since the last look."""
        self._look_at_clocks()
        if self._is_time_for("addresses", ADDRESSES_SECONDS):
            self._look_at_addresses()
        self._look_at_connections()
        self._look_at_quorum()
        self._look_at_hours()
        if self._is_time_for("disk", DISK_SECONDS):
            self.disk_bytes = bytes_under(self.directory)

    def _is_time_for(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now - self._looked_at.get(what, -seconds) < seconds:
            return False
        self._looked_at[what] = now
        return True

    # --- clocks and network ----------------------------------------------------------------------

    def _look_at_clocks(self) -> None:
        for event in self._watch.look(self.clocks()):
            self.tell(event)
            if isinstance(event, events.Slept):
                self.node.post(Command("look around"))
            else:
                self.node.set_forward(event.seconds)

    def _look_at_addresses(self) -> None:
        hosts = self.hosts()
        if hosts == self._hosts:
            return
        gone, self._hosts = self._hosts - hosts, hosts
        self.node.drop_connections_from(gone)
        before, now = self._addresses, self.addresses()
        if before != now:
            self._addresses = now
            self.node.peer.machine.neighbourhood.set_addresses(now)
            self.tell(events.AddressChanged(before=before, now=now))
            self.node.post(Command("look around"))

    def _look_at_connections(self) -> None:
        before, self._greeted = self._greeted, len(self.node.peer.machine.neighbourhood.greeted)
        if before and not self._greeted:
            self._lost_at = time.monotonic()
            self.tell(events.NetworkLost(peers=before))
        if self._lost_at is None:
            return
        if self._greeted:
            self.tell(events.NetworkBack(seconds=time.monotonic() - self._lost_at))
            self._lost_at = None
        elif self._is_time_for("redial", REDIAL_SECONDS):
            self.node.post(Command("look around"))

    def _look_at_quorum(self) -> None:
        machine = self.node.peer.machine
        voters = set(machine.chain.members.voters)
        if machine.me not in voters:
            self._had_quorum, self._without_since = False, None
            return
        connected = len(voters & {machine.me, *machine.neighbourhood.greeted})
        needed = quorum(len(voters))
        if connected >= needed:
            if self._without_since is not None:
                seconds = time.monotonic() - self._without_since
                self.tell(events.QuorumBack(connected=connected, seconds=seconds))
            self._had_quorum, self._without_since = True, None
        elif self._had_quorum and self._without_since is None:
            self._without_since = time.monotonic()
            self.tell(events.QuorumLost(connected=connected, quorum=needed))

    # --- when to train ---------------------------------------------------------------------------

    def _look_at_hours(self) -> None:
        if self.hours is None:
            return
        now = self.local_time()
        inside = self.hours.contain(now)
        if inside == self._in_hours:
            return
        first, self._in_hours = self._in_hours is None, inside
        if not inside:
            self.pause(BY_HOURS, f"{self.hours.next_change(now):%H:%M}")
        elif not first:
            self.resume(BY_HOURS)

    def pause(self, reason: str, until: str = "") -> None:
        """Train no more after what is in hand; vote and serve as before."""
        if reason not in self.paused_by:
            self.paused_by.add(reason)
            self.tell(events.TrainingPaused(reason=reason, until=until))
            self.node.post(Command("pause"))

    def resume(self, reason: str) -> None:
        """Train again, unless there is another reason not to.

        By hand it counts at all hours, until the hours to train end again.
        """
        was = set(self.paused_by)
        self.paused_by = set() if reason == BY_HAND else self.paused_by - {reason}
        if was and not self.paused_by:
            self.tell(events.TrainingResumed(reason=reason))
            self.node.post(Command("resume"))


def machine_hosts() -> frozenset[str]:
    """Return the addresses of this machine."""
    return frozenset(
        entry.address.partition("%")[0]
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    )
