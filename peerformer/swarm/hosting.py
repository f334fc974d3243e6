"""A node on a thread of its own, for a program that has other things to do than to be a peer.

The same `Running` as under `peerformer node`, with its own event loop; nothing of it is touched
from outside but by `ask`, which runs a function on the loop's thread. When the node ends, whether
asked to or not, whoever waits is woken and learns why.
"""

import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from peerformer.errors import SwarmError
from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import PeerDirectory, SwarmDirectory
from peerformer.node.process import LEAVE_SECONDS_MAX, Running, run_loop
from peerformer.node.worker import leave_operators_to_the_bench

JOIN_SECONDS = 0.2  # between two looks at a thread: Ctrl-C is heard in between
STOP_SECONDS_MAX = LEAVE_SECONDS_MAX + 15.0  # the worker may be in the middle of an aggregation

Answer = TypeVar("Answer")
Known = Sequence[tuple[str, bytes | None]]  # addresses, with their keys where these are known


def run_apart(coroutine: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
    """Run a coroutine to its end on a thread of its own: the caller's may have a loop already."""
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(run_loop(coroutine()))
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name="peerformer", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(JOIN_SECONDS)
    return future.result()


class Host:
    """A peer that runs on a thread of its own."""

    def __init__(
        self,
        swarm: SwarmDirectory,
        directory: PeerDirectory,
        options: PeerOptions,
        on_end: Callable[[], None],
    ) -> None:
        """Note what to run; `on_end` is called on the node's thread when it has ended."""
        self.running = Running(swarm, directory, options)
        self.failure: BaseException | None = None
        self.ended = False
        self._on_end = on_end
        self._started: Future[str] = Future()
        self._thread: threading.Thread | None = None

    def start(self, known: Known) -> str:
        """Start the node; returns the address that it listens on.

        Raises:
            PeerformerError: if it cannot be started; see `assemble`.
        """
        self._thread = threading.Thread(
            target=self._run, args=(known,), name="peerformer node", daemon=True
        )
        self._thread.start()
        return self._started.result()

    def _run(self, known: Known) -> None:
        leave_operators_to_the_bench()
        try:
            run_loop(self._live(known))
        except BaseException as error:
            self.failure = error
        self.ended = True
        if not self._started.done():
            self._started.set_exception(self.failure or SwarmError("the node ended at once"))
        self._on_end()

    async def _live(self, known: Known) -> None:
        address = await self.running.start()
        for place, key in known:
            self.running.node.spawn(self.running.bootstrap(place, key))
        self._started.set_result(address)
        await self.running.run_until_stopped()

    def ask(self, question: Callable[[Running], Answer]) -> Answer:
        """Run a function on the node's thread and return what it says.

        Raises:
            SwarmError: if the node has ended.
        """
        future: Future[Answer] = Future()

        def answer() -> None:
            try:
                future.set_result(question(self.running))
            except BaseException as error:
                future.set_exception(error)

        try:
            self.running.node.loop.call_soon_threadsafe(answer)
        except RuntimeError:  # the loop is closed
            self.check()
        while True:
            try:
                return future.result(JOIN_SECONDS)
            except (TimeoutError, CancelledError):
                self.check()

    def check(self) -> None:
        """Raise what ended the node, if it has ended."""
        if not self.ended:
            return
        if self.failure is not None:
            raise self.failure
        raise SwarmError("this peer's node has stopped", where=str(self.running.directory.path))

    def stop(self, *, leave: bool) -> None:
        """End the node: leave the swarm for good, or stop and be expected back."""
        if self._thread is None:
            return

        def end() -> None:
            if leave:
                self.running.leave()
            else:
                self.running.node.stop("stopped")

        if not self.ended and self._started.done() and self._started.exception() is None:
            try:
                self.running.node.loop.call_soon_threadsafe(end)
            except RuntimeError:
                self.ended = True  # between the end of the loop and that of the thread
        self._thread.join(STOP_SECONDS_MAX)
