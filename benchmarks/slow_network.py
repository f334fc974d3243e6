"""A network of slow lines on one machine: a star of namespaces around one router in user space.

Each host is a network namespace with one TUN device, whose packets come to this process. A packet
passes the sender's line up (a queue of a rate), the delay, and the receiver's line down; a pair of
hosts can be cut in one direction or both, and any packet may be lost. What is cut or does not fit
a queue is dropped without a word, as in the world. A round trip takes twice the delay.

    with SlowNetwork(8, megabits=50, delay_seconds=0.05) as network:
        network.cut({0}, {1, 2})          # host 0 is no longer heard by 1 and 2
        subprocess.run(["ip", "netns", "exec", network.names[0], ...])

It needs root and `ip` (iproute2) and touches nothing but namespaces of its own making. The router
carries some 400 Mbit/s in all; it says so when it falls behind (`late_seconds_max`).
"""

import fcntl
import heapq
import multiprocessing
import os
import secrets
import select
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from random import Random
from typing import Any

from trial_swarm import TrialSwarm, enter_namespace

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x4004_54CA, 0x0001, 0x1000
PACKET_BYTES_MAX = 65_535
QUEUE_SECONDS = 0.2  # of a line: what a home router buffers, roughly
QUEUE_PACKETS_MIN = 64  # a slow line must still hold a window of small packets
MTU_BYTES = 1_500
NETWORK = "10.213.{}.{}"  # of addresses that no real network here has
READS_AT_ONCE = 32
PORT = 8_888  # of a peer on its host
CANNOT_RUN = 77  # the exit code by which test harnesses know what was left out


@dataclass(slots=True)
class Line:
    """One direction of a host's line: when it will have sent all that waits."""

    bytes_per_second: float  # 0: as fast as can be
    free_at: float = 0.0
    bytes_passed: int = 0

    def leave(self, size: int, now: float) -> float | None:
        """Return when a packet that comes now has passed; None if the queue is full."""
        self.bytes_passed += size
        if not self.bytes_per_second:
            return now
        waits = max(0.0, self.free_at - now)
        room = max(QUEUE_SECONDS, QUEUE_PACKETS_MIN * MTU_BYTES / self.bytes_per_second)
        if waits > room:
            self.bytes_passed -= size
            return None
        self.free_at = now + waits + size / self.bytes_per_second
        return self.free_at


@dataclass(slots=True)
class Router:
    """Passes packets between TUN devices; runs in a process of its own."""

    devices: list[int]
    hosts: dict[bytes, int]  # address -> number
    megabits: float
    delay_seconds: float
    loss: float
    cut: set[tuple[int, int]] = field(default_factory=set)
    late_seconds_max: float = 0.0

    def run(self, control: Connection) -> None:
        """Route until the control pipe closes."""
        rate = self.megabits * 1e6 / 8
        up, down = ([Line(rate) for _ in self.devices] for _ in range(2))
        random, waiting, serial = Random(1), [], 0  # waiting: (when, serial, stage, to, packet)
        number = {device: index for index, device in enumerate(self.devices)}
        poll = select.epoll()
        for device in (*self.devices, control.fileno()):
            poll.register(device, select.EPOLLIN)
        while True:
            soon = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 1.0
            for descriptor, _ in poll.poll(soon):
                if descriptor == control.fileno():
                    if not self._obey(control, up, down):
                        return
                    continue
                source = number[descriptor]
                for packet in _packets(descriptor):
                    target = self.hosts.get(packet[16:20])
                    if target is None or (source, target) in self.cut:
                        continue
                    now = time.monotonic()
                    passed = up[source].leave(len(packet), now)
                    if passed is not None and random.random() >= self.loss:
                        serial += 1
                        arrives = passed + self.delay_seconds
                        heapq.heappush(waiting, (arrives, serial, 0, target, packet))
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                when, _, stage, target, packet = heapq.heappop(waiting)
                self.late_seconds_max = max(self.late_seconds_max, now - when)
                passed = down[target].leave(len(packet), when) if stage == 0 else now
                if passed is not None and passed > now:
                    serial += 1
                    heapq.heappush(waiting, (passed, serial, 1, target, packet))
                elif passed is not None:
                    _give(self.devices[target], packet)

    def _obey(self, control: Connection, up: list[Line], down: list[Line]) -> bool:
        try:
            order, what = control.recv()
        except (EOFError, OSError):
            return False
        if order == "cut":
            self.cut = set(what)
        elif order == "count":
            sent = [line.bytes_passed for line in up]
            control.send((sent, [line.bytes_passed for line in down], self.late_seconds_max))
            self.late_seconds_max = 0.0
        return True


def _packets(device: int) -> Iterable[bytes]:
    """Yield what waits in a device, but not for ever: there are others."""
    for _ in range(READS_AT_ONCE):
        try:
            packet = os.read(device, PACKET_BYTES_MAX)
        except BlockingIOError:
            return
        if packet[0] >> 4 == 4:  # what a namespace says of itself in IPv6 goes nowhere
            yield packet


def _give(device: int, packet: bytes) -> None:
    try:
        os.write(device, packet)
    except (BlockingIOError, OSError):
        return  # its queue is full, or the namespace is going: lost, as packets are


def can_make_namespaces() -> bool:
    """Tell whether this process may make network namespaces with TUN devices."""
    if os.geteuid() != 0 or shutil.which("ip") is None or not os.path.exists("/dev/net/tun"):
        return False
    name = f"pf{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "del", name], check=False)
    return made.returncode == 0


def need_namespaces() -> None:
    """End this program, with what to type, where it may not make namespaces."""
    if not can_make_namespaces():
        sys.stderr.write(
            "error: this trial makes network namespaces with TUN devices, and may not here\n"
            "  try: run it as root, on Linux with iproute2 and /dev/net/tun\n"
        )
        sys.exit(CANNOT_RUN)


class SlowNetwork:
    """Namespaces of hosts, and the router between them, for as long as the `with` lasts."""

    def __init__(
        self, hosts: int, *, megabits: float = 0.0, delay_seconds: float = 0.0, loss: float = 0.0
    ) -> None:
        """Say what the lines are like; 0 megabits a second: as fast as can be."""
        third = secrets.randbelow(250)
        tag = secrets.token_hex(2)
        self.names = [f"pf{tag}-{index}" for index in range(hosts)]
        self.addresses = [NETWORK.format(third, index + 1) for index in range(hosts)]
        self._router = (megabits, delay_seconds, loss)
        self._made: list[str] = []
        self._devices: list[int] = []
        self._process: Any = None
        self._control: Connection | None = None

    def __enter__(self) -> "SlowNetwork":
        try:
            for name, address in zip(self.names, self.addresses, strict=True):
                _ip("netns", "add", name)
                self._made.append(name)
                self._devices.append(_tun_in(name))
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", "tun0")
                _ip("-n", name, "link", "set", "tun0", "mtu", str(MTU_BYTES), "up")
            hosts = {_raw(address): index for index, address in enumerate(self.addresses)}
            router = Router(self._devices, hosts, *self._router)
            context = multiprocessing.get_context("fork")
            self._control, theirs = context.Pipe()
            self._process = context.Process(target=_route, args=(router, theirs, self._control))
            self._process.daemon = True
            self._process.start()
            theirs.close()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.join(2)
            self._process.kill()
        for device in self._devices:
            os.close(device)
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        self._made, self._devices = [], []

    def set_cuts(self, pairs: Collection[tuple[int, int]]) -> None:
        """Cut these (from, to) pairs, and no others."""
        assert self._control is not None
        self._control.send(("cut", list(pairs)))

    def cut(self, senders: Collection[int], receivers: Collection[int]) -> None:
        """Let nothing of these senders reach these receivers."""
        self.set_cuts([(a, b) for a in senders for b in receivers if a != b])

    def part(self, *groups: Collection[int]) -> None:
        """Let hosts talk to those of their own group only."""
        group_of = {host: index for index, group in enumerate(groups) for host in group}
        self.set_cuts([(a, b) for a in group_of for b in group_of if group_of[a] != group_of[b]])

    def place(self, trial: TrialSwarm) -> None:
        """Put those peers of a swarm that have no host yet on the free ones, in order of name."""
        taken = [trial.plan.get(name, {}).get("namespace") for name in trial.names]
        free = [index for index, name in enumerate(self.names) if name not in taken]
        names = [name for name, place in zip(trial.names, taken, strict=True) if place is None]
        for name, index in zip(names, free, strict=False):
            trial.tell(name, namespace=self.names[index])
            trial.place(name, host=self.addresses[index], port=PORT)

    def heal(self) -> None:
        """Cut nothing."""
        self.set_cuts([])

    def counted(self) -> tuple[list[int], list[int], float]:
        """Return the bytes each host sent and got, and how late the router was at worst."""
        assert self._control is not None
        self._control.send(("count", None))
        sent, received, late_seconds = self._control.recv()
        return sent, received, late_seconds


def _route(router: Router, control: Connection, other_end: Connection) -> None:
    other_end.close()  # else the pipe would outlive those who hold its other end
    os.setpriority(os.PRIO_PROCESS, 0, -10)  # a late router is a slower network than was asked for
    try:
        router.run(control)
    except KeyboardInterrupt:
        return


def _tun_in(namespace: str) -> int:
    """Make tun0 in a namespace; returns the descriptor its packets come from, in this process."""
    ours = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        enter_namespace(namespace)
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", b"tun0", IFF_TUN | IFF_NO_PI))
    finally:
        enter_namespace(f"/proc/self/fd/{ours}")
        os.close(ours)
    return device


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _raw(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))
