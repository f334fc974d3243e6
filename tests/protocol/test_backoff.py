"""Waits between tries: they grow, they differ, they end at a ceiling, and a success resets them."""

from random import Random
from statistics import mean

from peerformer.protocol.backoff import (
    LOST_SECONDS_MAX,
    WAIT_SECONDS_MAX,
    WAIT_SECONDS_MIN,
    Backoff,
    wait_seconds,
)
from peerformer.protocol.discovery import AddressBook
from tests.protocol.test_discovery import CHAIN, NOW, keys_of, public, record

SEED = 11


def test_the_ceiling_doubles_and_the_whole_range_below_it_is_used() -> None:
    print(f"seed {SEED}")
    draw = Random(SEED)
    for failures, ceiling in ((1, 2.0), (2, 4.0), (3, 8.0), (6, 60.0), (1_000, 60.0)):
        waits = [wait_seconds(failures, draw.random(), lost=False) for _ in range(2_000)]
        assert WAIT_SECONDS_MIN <= min(waits) and max(waits) <= ceiling <= WAIT_SECONDS_MAX
        width = ceiling - WAIT_SECONDS_MIN
        assert min(waits) < WAIT_SECONDS_MIN + 0.01 * width and max(waits) > ceiling - 0.01 * width
        assert abs(mean(waits) - (WAIT_SECONDS_MIN + width / 2)) < 0.05 * width


def test_peers_that_lost_one_together_do_not_return_together() -> None:
    print(f"seed {SEED}")
    draw = Random(SEED)
    crowd = [Backoff() for _ in range(1_000)]
    for _ in range(2):
        waits = sorted(one.failed(draw.random()) for one in crowd)
    busiest = max(sum(at <= wait < at + 0.1 for wait in waits) for at in waits)
    assert busiest < len(crowd) / 15  # in no tenth of a second more than twice their share


def test_a_success_begins_anew_and_whoever_is_lost_hurries() -> None:
    one = Backoff()
    assert [one.failed(1.0) for _ in range(5)] == [2.0, 4.0, *3 * [LOST_SECONDS_MAX]]
    one.succeeded()
    assert one.failed(1.0) == 2.0


def test_two_peers_draw_different_waits_for_the_same_lost_one() -> None:
    def waits(me: int) -> list[float]:
        book = AddressBook(keys_of(me).peer_id, CHAIN, bytes([me]) * 32)
        peer = keys_of(9).peer_id
        book.set_members((peer,), ())
        book.learn(record(9, public(9)), public(9), NOW)
        found = []
        for _ in range(8):
            book.missed(peer, NOW, online=True)
            found.append(book.entries[peer].dial_after - NOW)
        book.reached(peer, NOW)
        assert book.entries[peer].failures == 0
        return found

    assert all(abs(a - b) > 1e-3 for a, b in zip(waits(1), waits(2), strict=True))
    assert waits(1) == waits(1)  # drawn from its own secret: a world of a seed can be replayed
