"""Finds the rank that is gone or hangs, names it, and ends all of them.

A collective operation waits for the slowest rank, for ever if it must. So each rank counts the
points at which it meets the others; a thread writes the count to the store every second, together
with what the rank is at. Rank 0 reads all of them, the others read rank 0's:

- a count that is not written any more is a process that is gone or stopped;
- a count that stays behind that of others is a rank that they wait for;
- where all stand still together, that is told too.

Points at which one rank works while the others wait by design are marked `patient`: there only
silence counts. So are saving, and all before the first step. The first rank to find something tells
it, and all leave: a rank that waits in a collective cannot be woken, so the process ends from this
thread.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.distributed import Store

from peerformer.cluster.rendezvous import Meeting
from peerformer.errors import ClusterError, PeerformerError

BEAT_SECONDS = 1.0
GONE_SECONDS = 4.0  # without a beat, once a connection has broken: the process is gone
LEAVE_SECONDS_MAX = 5.0  # the store's host waits so long for the others to read why it ends
FAILED, CLAIM, LEFT = "failed", "claim", "left"


@dataclass(slots=True)
class Seen:
    """The last beat of a rank, and when it and its count last changed."""

    beat: int = -1
    count: int = 0
    at: str = "starting"
    patient: bool = True
    beat_since: float = 0.0
    count_since: float = 0.0

    def take(self, text: bytes, now: float) -> None:
        """Take a beat in."""
        beat, count, at, patient = json.loads(text)
        if beat != self.beat:
            self.beat, self.beat_since = beat, now
        if count != self.count or patient != self.patient:
            self.count, self.count_since = count, now
        self.at, self.patient = at, patient


def judge(seen: dict[int, Seen], now: float, hang_seconds: float) -> tuple[int | None, str] | None:
    """Return the rank that holds others up and why, None for all of them; None if all is well.

    Args:
        seen: the last beats, by rank.
        now: seconds, of the clock of `seen`.
        hang_seconds: how long is too long.
    """
    for rank, it in seen.items():
        silent = now - it.beat_since
        if silent > hang_seconds:
            return rank, f"it has not answered for {silent:.0f} s"
    if any(it.patient for it in seen.values()):
        return None
    furthest = max(it.count for it in seen.values())
    for rank, it in seen.items():
        still = now - it.count_since
        if it.count < furthest and still > hang_seconds:
            silent = now - it.beat_since
            if silent > 1.5 * BEAT_SECONDS:  # it is not slow: it is stopped
                return rank, f"it has not answered for {silent:.0f} s"
            return rank, f"the others have been waiting for it for {still:.0f} s"
    still = min(now - it.count_since for it in seen.values())
    if still > hang_seconds:
        return None, f"no rank has moved for {still:.0f} s, and all of them answer"
    return None


class Watch:
    """The thread that beats for this rank and watches the others."""

    def __init__(
        self,
        meeting: Meeting,
        hosts: list[str],
        hang_seconds: float,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        """Start it. `hosts` are the hosts' names, by rank; `leave` ends the process."""
        self._meeting, self._hosts, self._hang_seconds = meeting, hosts, hang_seconds
        self._rank, self._leave = meeting.launch.rank, leave
        self._store: Store = meeting.another()
        self._count, self._at, self._patient, self._step = 0, "starting", 0, 0
        self._broken = threading.Event()  # a collective failed: somebody is gone
        self._stopping = threading.Event()
        self._beats = 0
        ranks = range(len(hosts)) if self._rank == 0 else (0, self._rank)
        now = time.monotonic()
        self._seen = {rank: Seen(beat_since=now, count_since=now) for rank in ranks}
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._beat()
        self._thread.start()

    # --- called by the rank's own thread ---------------------------------------------------------

    def meets(self, at: str) -> None:
        """Count a point at which all ranks meet."""
        self._at = at
        self._count += 1

    def step(self, number: int) -> None:
        """Note the step that is being made."""
        self._step = number

    @contextmanager
    def patience(self, at: str) -> Iterator[None]:
        """Let one rank work for as long as it takes."""
        self.meets(at)
        self._patient += 1
        try:
            yield
        finally:
            self._patient -= 1
            self._count += 1

    def who_is_gone(self, why: str) -> PeerformerError:
        """Return the error for a collective that failed: which rank stopped answering."""
        deadline = time.monotonic() + GONE_SECONDS + 2 * BEAT_SECONDS
        store, seen = self._meeting.another(), dict[int, Seen]()
        ranks = [rank for rank in range(len(self._hosts)) if rank != self._rank]
        began = time.monotonic()
        while time.monotonic() < deadline:
            for rank in ranks:
                it = seen.setdefault(rank, Seen(beat_since=began, count_since=began))
                it.take(store.get(f"beat/{rank}"), time.monotonic())
                if time.monotonic() - it.beat_since > GONE_SECONDS:
                    return self._error(rank, f"its process is gone; {why}", it)
            time.sleep(BEAT_SECONDS / 4)
        return ClusterError("a connection between ranks broke", why=why)

    def close(self, exit_code: int | None) -> bool:
        """Stop; with a code, all other ranks end with it. True if this rank is to tell why."""
        self._stopping.set()
        self._thread.join(3 * BEAT_SECONDS)
        if exit_code is None:
            return False
        try:
            first = self._store.add(CLAIM, 1) == 1
            if first:
                self._store.set(FAILED, str(exit_code))
            self._say_goodbye()
        except RuntimeError:
            return True  # the store is gone with rank 0
        return first

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.wait(BEAT_SECONDS):
            try:
                self._beat()
                self._look()
            except RuntimeError:  # the store does not answer: whoever served it is gone
                if not self._stopping.is_set():
                    self._end(self._error(0, "the store that it served is gone", None))

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(f"beat/{self._rank}", self._word().decode())

    def _word(self) -> bytes:
        at = f"step {self._step}, {self._at}" if self._step else self._at
        patient = self._patient > 0 or not self._step  # before the first step all is preparation
        return json.dumps([self._beats, self._count, at, patient]).encode()

    def _look(self) -> None:
        if self._store.check([FAILED]):
            code = int(self._store.get(FAILED))
            self._say_goodbye()
            self._leave(code)
            return
        now = time.monotonic()
        for rank, it in self._seen.items():
            if rank == self._rank:
                it.take(self._word(), now)
            elif self._store.check([f"beat/{rank}"]):
                it.take(self._store.get(f"beat/{rank}"), now)
        found = judge(self._seen, now, self._hang_seconds)
        if found is None or (self._rank and found[0] != 0):
            return  # only rank 0 knows all beats; the others look after rank 0 alone
        culprit, why = found
        self._end(self._error(culprit, why, None if culprit is None else self._seen[culprit]))

    def _end(self, error: PeerformerError) -> None:
        try:
            first = self._store.add(CLAIM, 1) == 1
            if first:
                self._store.set(FAILED, str(error.exit_code))
        except RuntimeError:
            first = self._rank == 1  # without a store nobody can be asked
        if first:
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
        self._say_goodbye()
        self._leave(error.exit_code)

    def _say_goodbye(self) -> None:
        """Let the others know that this rank leaves; the store's host leaves last."""
        try:
            left = self._store.add(LEFT, 1)
            deadline = time.monotonic() + LEAVE_SECONDS_MAX
            while self._meeting.serves and left < len(self._hosts):
                if time.monotonic() > deadline:
                    return
                time.sleep(BEAT_SECONDS / 10)
                left = self._store.add(LEFT, 0)
        except RuntimeError:
            return  # the store is gone: there is nobody to tell

    def _error(self, rank: int | None, why: str, it: Seen | None) -> ClusterError:
        at = f"; its last word was: {it.at}" if it else f"; this rank was at: {self._at}"
        if rank is None:
            return ClusterError(
                "the ranks hang", where=f"step {self._step}", why=why + at, hint=_HINT
            )
        return ClusterError(
            f"rank {rank} on {self._hosts[rank]} does not go on",
            where=f"step {self._step}",
            why=why + at,
            hint=_HINT,
        )


_HINT = "the same command goes on from the last checkpoint; torchrun --max-restarts does it alone"
