"""The works of a world's hosts: when each one ends, and what comes of it.

Works of the bench are done one after the other, as by the node's worker; with staleness 1 a
training goes on beside the others, which interrupt it. What is fetched comes from a host that is
reached and has it, in its own time.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from peerformer.protocol.effects import (
    Adopt,
    Dial,
    FetchBlob,
    FetchState,
    Inspect,
    Repeat,
    Train,
    Trained,
    Work,
    WorkFinished,
)
from peerformer.simulate.host import Host
from peerformer.simulate.transfers import copied, hold_on

if TYPE_CHECKING:
    from peerformer.simulate.world import World

Fetch = FetchBlob | FetchState
FETCH_SECONDS_MAX = 10.0
FETCH_RETRY_SECONDS = 0.4
FETCH_SECONDS = 0.05  # beside the way there
BENCH_SECONDS = 0.02


class Works:
    """How the hosts of a world do what their peers order."""

    def __init__(self, world: "World") -> None:
        """Take the usual durations, in seconds; they may be replaced."""
        self.world = world
        self.train_seconds: Callable[[int], float] = lambda _: 2.0 + world.random.random()
        self.bench_seconds: Callable[[Work], float] = lambda _: BENCH_SECONDS  # not training
        self.fetch_seconds: Callable[[Host, Fetch], float] = lambda *_: (
            world.network.travel_seconds() + FETCH_SECONDS
        )

    def start(self, host: Host, work: Work) -> None:
        """Begin a work; its end is an event of the host."""
        if isinstance(work, Fetch):
            self._fetch(host, work, partial(self._fetched, host, work))
        elif isinstance(work, Dial):
            self._dial(host, work)
        elif isinstance(work, Inspect) and work.exhibit.blob_hash not in host.blobs.held:
            self._fetch_and_inspect(host, work)
        elif isinstance(work, Repeat):
            self._perform_in(host, work, 2 * self.train_seconds(host.index))  # beside all else
        elif isinstance(work, Train) and self.world.limits.staleness:
            self._train_beside(host, work)
        else:
            self._perform(host, work)

    def _finish(self, host: Host, finished: WorkFinished) -> None:
        self.world.event(host, finished)

    def _fetched(self, host: Host, work: Fetch, *, held: bool) -> None:
        self._finish(host, WorkFinished(work, held))

    def _perform(self, host: Host, work: Work) -> None:
        is_training = isinstance(work, Train)
        seconds = self.train_seconds(host.index) if is_training else self.bench_seconds(work)
        host.busy_until = max(host.busy_until, self.world.now) + seconds
        host.training_until += seconds  # a training in hand gives way
        self._perform_in(host, work, host.busy_until - self.world.now)

    def _perform_in(self, host: Host, work: Work, seconds: float) -> None:
        self.world.at(seconds, partial(self._perform_now, host, work, host.life))

    def _perform_now(self, host: Host, work: Work, life: int) -> None:
        if host.life != life or host.peer is None:
            return
        if self.world.now < host.frozen_until:
            self._perform_in(host, work, host.frozen_until - self.world.now)
            return
        finished = host.peer.perform(work)
        if isinstance(work, Adopt):
            self.world.save(host)
        self._finish(host, finished)

    def _train_beside(self, host: Host, work: Train) -> None:
        """Train while other works go on, after those ordered before.

        As on the node's worker: what is ordered meanwhile is done between two steps, and the
        training takes so much longer. The steps of one that is overtaken count for the next.
        """
        seconds = self.train_seconds(host.index)
        if host.training is None:
            host.training_until = max(host.busy_until, self.world.now) + seconds
        host.training = work
        trained = partial(self._trained, host, work, host.life, seconds)
        self.world.at(max(0.0, host.training_until - self.world.now), trained)

    def _trained(self, host: Host, work: Train, life: int, seconds: float) -> None:
        if host.life != life or host.peer is None or host.training is not work:
            return
        wait = max(host.frozen_until, host.training_until) - self.world.now
        if wait > 0:
            self.world.at(wait, partial(self._trained, host, work, life, seconds))
            return
        host.training = None
        finished = host.peer.perform(work)
        if isinstance(finished.result, Trained):
            finished = replace(finished, result=replace(finished.result, seconds=seconds))
        self._finish(host, finished)

    def _fetch_and_inspect(self, host: Host, work: Inspect) -> None:
        """Fetch what evidence is about, then look at it."""
        wanted = work.exhibit
        fetch = FetchBlob(wanted.round, wanted.author, wanted.blob_hash, wanted.size, work.sources)

        def look(*, held: bool) -> None:
            if held:
                self._perform(host, work)
            else:
                self._finish(host, WorkFinished(work, None))

        self._fetch(host, fetch, look)

    def _dial(self, host: Host, work: Dial) -> None:
        reached = False
        for other in self.world.by_id.get(work.peer, ()):
            way = (host.index, other.index)
            if other.peer is not None and way not in self.world.network.blocked:
                reached = True
                self.world.link(host, other)
        self.world.soon(host, WorkFinished(work, reached), 0.05)

    def _fetch(self, host: Host, work: Fetch, then: Callable[..., None]) -> None:
        if isinstance(work, FetchState):
            hold_on(self.world, work)
        seconds = self.fetch_seconds(host, work)
        deadline = self.world.now + seconds + FETCH_SECONDS_MAX
        attempt = partial(self._attempt, host, work, then, deadline, host.life)
        self.world.at(seconds, attempt)

    def _attempt(
        self, host: Host, work: Fetch, then: Callable[..., None], deadline: float, life: int
    ) -> None:
        if host.life != life or host.peer is None:
            return
        held = isinstance(work, FetchBlob) and work.blob_hash in host.blobs.held
        if held or self._copied(host, work):
            then(held=True)
        elif self.world.now >= deadline:
            then(held=False)
        else:
            again = partial(self._attempt, host, work, then, deadline, life)
            self.world.at(FETCH_RETRY_SECONDS, again)

    def _copied(self, host: Host, work: Fetch) -> bool:
        sources = (source for peer in work.sources for source in self.world.by_id.get(peer, ()))
        return any(copied(self.world, host, source, work) for source in sources)
