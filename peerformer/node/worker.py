"""One thread that does a peer's tensor work, in the order in which it was ordered.

Training takes seconds, checking a contribution milliseconds; so training gives way between two of
its steps to whatever else has been ordered since. The event loop never waits for a tensor: it
puts works in and gets `WorkFinished` back on its own thread.
"""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import torch

from peerformer.peer import Participant
from peerformer.protocol.effects import Train, Work, WorkFinished


def leave_operators_to_the_bench() -> None:
    """Keep the calling thread from a pool of operator threads of its own.

    GNU OpenMP throttles all pools once they hold more threads than there are cores, so a pool of
    the event loop's thread, even an idle one, makes the bench train at the speed of one thread.
    """
    torch.set_num_threads(1)


class Worker:
    """The bench's thread. `on_finished` and `on_failure` are called on it, not on the caller's."""

    def __init__(
        self,
        peer: Participant,
        on_finished: Callable[[WorkFinished], None],
        on_failure: Callable[[BaseException], None],
        *,
        threads: int,
        give_way: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the thread.

        Its operators use `threads` threads; `give_way` is called before every training step.
        """
        self._threads = threads
        self._peer, self._on_finished, self._on_failure = peer, on_finished, on_failure
        self._give_way = give_way
        self._queue: SimpleQueue[Work | Callable[[], None] | None] = SimpleQueue()
        self._stopping = threading.Event()
        self.training_since = 0.0  # monotonic seconds at which the last training began
        self._thread = threading.Thread(target=self._run, name="bench", daemon=True)
        self._thread.start()

    def work_for(self, peer: Participant) -> None:
        """Do the works from now on as another peer does them (one that begins to lie)."""
        self._peer = peer

    def submit(self, work: Work | Callable[[], None]) -> None:
        """Order a work, or anything else that must happen between works."""
        self._queue.put(work)

    def stop(self, timeout_seconds: float = 10.0) -> bool:
        """End after the work in hand; a training stops at its next step. True once it has ended."""
        self._stopping.set()
        self._queue.put(None)
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP counts for each calling thread by itself
        try:
            while not self._stopping.is_set():
                self._do(self._queue.get())
        except BaseException as error:  # whatever it is: the node must stop, not train on
            self._on_failure(error)

    def _do(self, work: Work | Callable[[], None] | None) -> None:
        if work is None:
            return
        if isinstance(work, Train):
            self.training_since = time.monotonic()
            self._on_finished(self._peer.perform(work, self._between_steps))
        elif callable(work):
            work()
        else:
            self._on_finished(self._peer.perform(work))

    def _between_steps(self) -> bool:
        """Do what was ordered since; True if training should stop."""
        self._give_way()
        while not self._stopping.is_set() and not self._queue.empty():
            work = self._queue.get()
            if isinstance(work, Train):
                self._queue.put(work)  # the next round's: the one in hand is over
                return True
            self._do(work)
        return self._stopping.is_set()
