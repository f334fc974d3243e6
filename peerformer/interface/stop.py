"""Ctrl-C while something is trained: the step is ended and saved, and then the program ends."""

import os
import signal
import sys
from types import FrameType
from typing import Any

from peerformer.cluster.launch import Launch
from peerformer.errors import Interrupted


class Stop:
    """Ctrl-C once: stop after this step. Twice: leave now.

    It listens only while steps are made: before that there is nothing to save, and Ctrl-C ends
    the program as it always does.
    """

    def __init__(self, launch: Launch | None = None) -> None:
        self.asked, self._launch = False, launch
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether to stop after this step."""
        return self.asked

    def listen(self) -> None:
        """Take the signals from now on; once is enough."""
        if self._before:
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)

    def close(self) -> None:
        """Give the signals back to who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_alone = self._launch is None or self._launch.is_alone
        if self.asked and is_alone:  # launchers pass one Ctrl-C on several times
            os._exit(Interrupted.exit_code)
        if not self.asked and (self._launch is None or self._launch.rank == 0):
            again = " (Ctrl-C again: at once)" if is_alone else ""
            print(f"\nStopping after this step …{again}", file=sys.stderr, flush=True)
        self.asked = True
