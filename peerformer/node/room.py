"""Waiting for room on a full disk, told once and in plain words; nothing is given up meanwhile.

A file that does not fit is written again every few seconds, on the thread that wants it, until it
does. Whoever waits so holds back what rests on the file, so a peer whose disk is full neither votes
nor sends a contribution, and goes on where it was once there is room.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from peerformer.full_disk import RETRY_SECONDS, is_full

Made = TypeVar("Made")


class Room:
    """Whether the disk of one peer has room. Safe to use from any thread."""

    def __init__(
        self,
        on_full: Callable[[str], None] = lambda _: None,
        on_room: Callable[[float], None] = lambda _: None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """Tell `on_full` why, and `on_room` after how many seconds; on the thread that met it."""
        self.on_full, self.on_room, self.retry_seconds = on_full, on_room, retry_seconds
        self._lock = threading.Lock()
        self._waiting: set[object] = set()  # who waits for room
        self._since = 0.0
        self._stopping = threading.Event()

    @property
    def is_full(self) -> bool:
        """Whether something waits for room."""
        return bool(self._waiting)

    def wait_for(self, who: object, error: BaseException) -> None:
        """Note that `who` waits for room."""
        with self._lock:
            first = not self._waiting
            self._waiting.add(who)
            if first:
                self._since = time.monotonic()
        if first:
            self.on_full(str(error))

    def found(self, who: object) -> None:
        """Note that `who` waits no longer."""
        with self._lock:
            last = self._waiting == {who}
            self._waiting.discard(who)
        if last:
            self.on_room(time.monotonic() - self._since)

    def write(self, action: Callable[[], Made]) -> Made:
        """Write something, again and again until it fits.

        Raises:
            Exception: what `action` raises for another reason, or when the peer stops.
        """
        me = object()
        while True:
            try:
                made = action()
            except Exception as error:
                if not is_full(error):
                    raise
                self.wait_for(me, error)
                if self._stopping.wait(self.retry_seconds):
                    raise
            else:
                if me in self._waiting:
                    self.found(me)
                return made

    def stop(self) -> None:
        """Let nobody wait any longer."""
        self._stopping.set()
