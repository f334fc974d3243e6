"""What happens around a peer: clocks, hours, addresses, networks; noticed, told, acted upon."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from peerformer import events
from peerformer.errors import ConfigError
from peerformer.node.clocks import ClockWatch, Reading, read_clocks
from peerformer.node.founding import limits_of
from peerformer.node.hours import read_hours
from peerformer.node.known_round import KnownBench, known_genesis, known_node, meet
from peerformer.node.node import Node
from peerformer.node.surroundings import BY_HAND, BY_HOURS, Surroundings
from peerformer.protocol.effects import Command
from peerformer.settings import resolve

HOUR = 3_600.0
CONFIG = resolve(size="nano").config


def looked(*readings: tuple[float, float, float | None]) -> list[list[Any]]:
    """What a watch says at each look after the first."""
    first, *rest = [Reading(*reading) for reading in readings]
    watch = ClockWatch(first, every_seconds=1.0)
    return [watch.look(reading) for reading in rest]


def test_sleep_a_set_clock_and_a_stopped_process_are_told_apart() -> None:
    begin = (1_000.0, 10.0, 10.0)
    assert looked(begin, (1_001.0, 11.0, 11.0)) == [[]]
    slept = looked(begin, (1_000 + HOUR, 11.0, 9.0 + HOUR))
    assert slept == [[events.Slept(seconds=HOUR - 2, cause="the machine slept")]]
    still = looked(begin, (1_000 + HOUR, 10 + HOUR, 10 + HOUR))
    assert [(e.seconds, e.cause) for e in still[0]] == [(HOUR, "the process stood still")]
    back = looked(begin, (1_001 - HOUR, 11.0, 11.0))
    assert back == [[events.ClockJumped(seconds=-HOUR)]]
    forward = looked(begin, (1_001 + HOUR, 11.0, 11.0))
    assert forward == [[events.ClockJumped(seconds=HOUR)]]


def test_without_a_boot_clock_a_leap_ahead_is_taken_for_sleep() -> None:
    begin = (1_000.0, 10.0, None)
    assert looked(begin, (1_001 + HOUR, 11.0, None)) == [
        [events.Slept(seconds=HOUR, cause="the machine slept")]
    ]
    assert looked(begin, (1_001 - HOUR, 11.0, None)) == [[events.ClockJumped(seconds=-HOUR)]]


def test_corrections_of_a_time_service_are_no_news() -> None:
    assert looked((1_000.0, 10.0, 10.0), (1_003.5, 11.0, 11.0), (1_001.0, 12.0, 12.0)) == [[], []]


def test_hours_go_over_midnight() -> None:
    night = read_hours("22:00-07:00")
    for text, inside, change in (
        ("2026-11-29 21:59", False, "2026-11-29 22:00"),
        ("2026-11-29 22:00", True, "2026-11-30 07:00"),
        ("2026-11-30 00:00", True, "2026-11-30 07:00"),
        ("2026-11-30 07:00", False, "2026-11-30 22:00"),
    ):
        moment = datetime.fromisoformat(text)
        assert night.contain(moment) is inside, text
        assert night.next_change(moment) == datetime.fromisoformat(change), text
    day = read_hours("9:30-17:00")
    assert day.contain(datetime(2026, 11, 29, 9, 30)) and not day.contain(datetime(2026, 11, 29, 8))


@pytest.mark.parametrize("night", ["2026-03-28", "2026-10-24"])  # summer time begins, ends
def test_hours_are_those_of_the_clock_on_the_wall_when_summer_time_comes_and_goes(
    night: str,
) -> None:
    berlin, hours = ZoneInfo("Europe/Berlin"), read_hours("22:00-07:00")
    begin = datetime.fromisoformat(f"{night} 22:00").replace(tzinfo=berlin).timestamp()
    inside = 0
    while hours.contain(datetime.fromtimestamp(begin + 60 * inside, berlin)):
        inside += 1
    assert inside == (8 if night == "2026-03-28" else 10) * 60


@pytest.mark.parametrize("text", ["", "22-7", "24:00-07:00", "22:00-07:60", "08:00-08:00", "noon"])
def test_hours_that_cannot_be_meant_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_hours(text)
    assert "--between" in str(caught.value) and caught.value.hint


# --- around a running node -----------------------------------------------------------------------


class Some:
    """A few nodes of known peers, what surrounds the first, and what it tells."""

    def __init__(self, nodes: list[Node], directory: Path) -> None:
        self.nodes, self.told, self.hosts = nodes, list[Any](), frozenset({"127.0.0.1"})
        self.port = nodes[0].transport.listening[0][1]
        self.clock = read_clocks()
        self.local = datetime(2026, 11, 29, 21, 0)
        self.around = Surroundings(
            nodes[0],
            self.told.append,
            lambda: tuple(f"{host}:{self.port}" for host in sorted(self.hosts)),
            directory,
            every_seconds=0.25,
            clocks=lambda: self.clock,
            hosts=lambda: self.hosts,
            local_time=lambda: self.local,
        )

    def told_of(self, kind: type) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, self.told
            for node in self.nodes:
                assert not node.stopped.done() or node.stopped.result()
            await asyncio.sleep(0.02)
            self.around._looked_at.clear()
            self.around.look()

    def greeted(self, index: int) -> int:
        return len(self.nodes[index].peer.machine.neighbourhood.greeted)


def around(directory: Path, count: int, story: Callable[[Some], Awaitable[None]]) -> None:
    """Tell a story with nodes of known peers."""

    async def tell() -> None:
        seeds = [secrets.token_bytes(32) for _ in range(count)]
        genesis, first = known_genesis(CONFIG, limits_of(CONFIG), seeds)
        nodes = [
            await known_node(
                directory, genesis, seed, KnownBench(CONFIG, first), lambda *_: None, "0.0.0.0"
            )
            for seed in seeds
        ]
        try:
            await meet(nodes)
            for node in nodes:
                node.post(Command("start"))
            await story(Some(nodes, directory))
        finally:
            for node in nodes:
                node.stop("over")
                await node.close()

    asyncio.run(tell())


def test_a_machine_that_slept_says_so_and_dials_at_once(tmp_path: Path) -> None:
    async def story(some: Some) -> None:
        node, other = some.nodes
        before = node.now()
        book = node.peer.machine.neighbourhood.book
        entry = book.entries[other.peer.machine.me]
        entry.failures, entry.dial_after = 12, node.now() + HOUR
        clock = some.clock
        assert clock.boot is not None
        some.clock = replace(clock, wall=clock.wall + HOUR, boot=clock.boot + HOUR)
        some.around.look()
        (slept,) = some.told_of(events.Slept)
        assert slept.seconds == pytest.approx(HOUR) and slept.cause == "the machine slept"
        assert entry.failures == 0 and entry.dial_after <= node.now()
        some.clock = replace(some.clock, wall=some.clock.wall + HOUR)
        some.around.look()
        (jumped,) = some.told_of(events.ClockJumped)
        assert jumped.seconds == pytest.approx(HOUR)
        assert node.now() >= before + HOUR  # what it dates is dated by the clock of the others
        some.clock = replace(some.clock, wall=some.clock.wall - 2 * HOUR)
        here = node.now()
        some.around.look()
        assert node.now() >= here  # and never goes back

    around(tmp_path, 2, story)


def test_a_machine_with_a_new_address_tells_the_others_and_is_found_there(tmp_path: Path) -> None:
    async def story(some: Some) -> None:
        node, other = some.nodes
        me = node.peer.machine.me
        records = other.peer.machine.neighbourhood.book.entries
        assert records[me].addresses == (f"127.0.0.1:{some.port}",)
        some.around.look()
        some.hosts = frozenset({"127.0.0.2"})
        some.around._looked_at.clear()
        some.around.look()  # the connection from the old address is dead, and is closed
        (moved,) = some.told_of(events.AddressChanged)
        assert moved.now == (f"127.0.0.2:{some.port}",)
        await some.until(
            lambda: (
                records[me].addresses == (f"127.0.0.2:{some.port}",)
                and some.greeted(0) == some.greeted(1) == 1
            )
        )
        assert some.told_of(events.NetworkLost) and some.told_of(events.NetworkBack)
        found = await other.transport.dial(records[me].addresses[0], expect=me)
        assert found.address == f"127.0.0.2:{some.port}"

    around(tmp_path, 2, story)


def test_the_hours_to_train_begin_and_end_and_a_hand_counts_for_more(tmp_path: Path) -> None:
    async def story(some: Some) -> None:
        node, around_it = some.nodes[0], some.around
        around_it.hours = read_hours("22:00-07:00")
        around_it.look()
        (paused,) = some.told_of(events.TrainingPaused)
        assert (paused.reason, paused.until) == (BY_HOURS, "22:00")
        assert node.peer.machine.paused
        some.local = datetime(2026, 11, 29, 22, 0)
        around_it.look()
        assert not node.peer.machine.paused and len(some.told_of(events.TrainingResumed)) == 1
        around_it.pause(BY_HAND)
        some.local = datetime(2026, 11, 30, 7, 0)
        around_it.look()
        some.local = datetime(2026, 11, 30, 22, 0)
        around_it.look()
        assert node.peer.machine.paused  # by hand, still
        around_it.resume(BY_HAND)
        assert not node.peer.machine.paused

    around(tmp_path, 2, story)


def test_a_quorum_that_is_lost_and_comes_back_is_told_once(tmp_path: Path) -> None:
    async def story(some: Some) -> None:
        some.around.look()
        for peer in list(some.nodes[0].connections):
            some.nodes[0]._disconnect(peer, "a cut cable")
            some.nodes[0]._turn()
        some.around.look()
        some.around.look()
        (lost,) = some.told_of(events.QuorumLost)
        assert (lost.connected, lost.quorum) == (1, 3)
        await some.until(lambda: bool(some.told_of(events.QuorumBack)))
        assert len(some.told_of(events.QuorumLost)) == 1

    around(tmp_path, 3, story)
