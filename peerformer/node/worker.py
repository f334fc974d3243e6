"""One thread that does a peer's tensor work, in the order in which it was ordered.

Training takes seconds, checking a contribution milliseconds; so training gives way between two of
its steps, and between two layers within a step, to whatever else has been ordered since. That makes
training ahead of the vote (staleness 1) harmless to the vote: a work waits for a layer, not for a
training. A second thread would share the cores all the same, and its operators' threads would slow
those of the first (see `leave_operators_to_the_bench`). The event loop never waits for a tensor: it
puts works in and gets `WorkFinished` back on its own thread.

Repeating another's training (an audit) takes as long as a training and can wait: it begins when
nothing else is ordered, and gives way to everything, a training of one's own included. But where
all have as much to do there would never be such a time, and no finding when it is due: so the
training of the round in which a finding is due begins after that audit.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue

import torch

from peerformer.peer import Participant
from peerformer.protocol.audits import AUDIT_ROUNDS
from peerformer.protocol.effects import Repeat, Train, Trained, Work, WorkFinished


def leave_operators_to_the_bench() -> None:
    """Keep the calling thread from a pool of operator threads of its own.

    GNU OpenMP throttles all pools once they hold more threads than there are cores, so a pool of
    the event loop's thread, even an idle one, makes the bench train at the speed of one thread.
    """
    torch.set_num_threads(1)


def _is_due(audit: Repeat, training: Train) -> bool:
    return audit.round + AUDIT_ROUNDS <= training.round


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
        self._next: Train | None = None  # taken from the queue while another was in hand
        self._audits: list[Repeat] = []  # for when there is nothing else to do; the newest first
        self._held: Train | None = None  # until the audit in hand has ended
        self._stopping = threading.Event()
        self._training_since = 0.0  # monotonic seconds at which the last training began
        self._given_away_seconds = 0.0  # of it, to other works
        self._thread = threading.Thread(target=self._run, name="bench", daemon=True)
        self._thread.start()

    def work_for(self, peer: Participant) -> None:
        """Do the works from now on as another peer does them (one that begins to lie)."""
        self._peer = peer

    def submit(self, work: Work | Callable[[], None]) -> None:
        """Order a work, or anything else that must happen between works."""
        self._queue.put(work)

    def training_seconds(self) -> float:
        """Return how long the training in hand has been at its own steps; on the thread itself."""
        return time.monotonic() - self._training_since - self._given_away_seconds

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
                work, self._next = self._next or self._ordered(), None
                self._do(work)
        except BaseException as error:  # whatever it is: the node must stop, not train on
            self._on_failure(error)

    def _ordered(self) -> Work | Callable[[], None] | None:
        """Wait for what is to be done now; an audit only if nothing else is.

        The newest first: its finding is most likely to be there when it is due.
        """
        while True:
            if self._audits and self._queue.empty():
                return self._audits.pop()
            work = self._queue.get()
            if not isinstance(work, Repeat):
                return work
            self._audits.append(work)

    def _do(self, work: Work | Callable[[], None] | None) -> None:
        if work is None:
            return
        if isinstance(work, Train):
            self._audit_before(work)
            self._training_since, self._given_away_seconds = time.monotonic(), 0.0
            finished = self._peer.perform(work, self._between_steps)
            if isinstance(finished.result, Trained):
                measured = replace(finished.result, seconds=self.training_seconds())
                finished = replace(finished, result=measured)
            self._on_finished(finished)
        elif isinstance(work, Repeat):
            self._on_finished(self._peer.perform(work, lambda: self._beside(work)))
            held, self._held = self._held, None
            self._do(held)
        elif callable(work):
            work()
        else:
            self._on_finished(self._peer.perform(work))

    def _between_steps(self) -> bool:
        """Do what was ordered since; True if training should stop."""
        began = time.monotonic()
        self._give_way()
        self._given_away_seconds += time.monotonic() - began
        self.between_layers()
        return self._stopping.is_set() or self._next is not None

    def _audit_before(self, training: Train) -> None:
        """Do the audits whose findings are due in the round of a training."""
        due = [audit for audit in self._audits if _is_due(audit, training)]
        self._audits = [audit for audit in self._audits if audit not in due]
        for audit in due:
            self._on_finished(self._peer.perform(audit, self._between_steps))

    def _beside(self, audit: Repeat) -> bool:
        """Do what was ordered since, trainings too unless it is due; True if it should stop."""
        while not self._stopping.is_set() and (self._next or not self._queue.empty()):
            work, self._next = self._next or self._queue.get(), None
            if isinstance(work, Repeat):
                self._audits.append(work)
            elif isinstance(work, Train) and self._held is not None:
                self._next = work  # of a later round: the audit is too late
                return True
            elif isinstance(work, Train) and _is_due(audit, work):
                self._held = work
            else:
                self._do(work)
        self._give_way()
        return self._stopping.is_set()

    def between_layers(self) -> None:
        """Do what was ordered since; called by a training on this thread, within a step too."""
        began = time.monotonic()
        while not self._stopping.is_set() and self._next is None and not self._queue.empty():
            work = self._queue.get()
            if isinstance(work, Train):
                self._next = work  # of a later round: the one in hand is over
            elif isinstance(work, Repeat):
                self._audits.append(work)
            else:
                self._do(work)
        self._given_away_seconds += time.monotonic() - began
