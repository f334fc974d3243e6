"""Who counts as gone: whoever is silent, within the stated time, and nobody else."""

import random

from peerformer.node.limits import TransportLimits
from peerformer.node.silence import Silence

LIMITS = TransportLimits()


def begin(now: float = 0.0) -> Silence:
    return Silence.begin(LIMITS.silence_seconds_max, LIMITS.look_seconds, now)


def noticed_after(silence: Silence, last_byte: float) -> float:
    """Return how long after its last byte a peer is found to be gone."""
    silence.heard(last_byte)
    now = silence.looked_at
    while not silence.is_gone(now := now + silence.look_seconds):
        assert now < last_byte + 1_000
    return now - last_byte


def test_a_peer_that_is_gone_is_noticed_within_the_stated_time_and_not_before_the_limit() -> None:
    for begun in range(100):
        silence = begin()
        seconds = noticed_after(silence, begun / 100)
        assert LIMITS.silence_seconds_max < seconds <= silence.detection_seconds_max


def test_a_healthy_peer_that_only_keeps_alive_is_never_suspected() -> None:
    """Its keep-alives come as late as they may, and each is held up by up to nine seconds more."""
    seed = 7
    print(f"seed {seed}")
    draw, silence = random.Random(seed), begin()
    latest = LIMITS.idle_seconds_max + LIMITS.look_seconds
    beats, now = [0.0], 0.0
    while now < 10_000:
        now += latest
        beats.append(now + draw.uniform(0, 9 - 1e-6))
    arrived = 0
    for look in range(1, 10_000):
        while beats[arrived] <= look:
            silence.heard(beats[arrived])
            arrived += 1
        assert not silence.is_gone(look)


def test_whoever_was_stopped_itself_holds_it_against_nobody() -> None:
    silence = begin()
    for now in range(1, 10):
        assert not silence.is_gone(now)
    assert not silence.is_gone(3_600)  # an hour in which this process did not run
    assert not silence.is_gone(3_601)  # what came meanwhile has not been read yet
    assert noticed_after(silence, 3_601) <= silence.detection_seconds_max


def test_a_slow_loop_does_not_hide_a_dead_peer_for_ever() -> None:
    """Looks that come half a period late are no sleep."""
    silence, now = begin(), 0.0
    while not silence.is_gone(now := now + 1.5 * LIMITS.look_seconds):
        assert now < 2 * LIMITS.silence_seconds_max
