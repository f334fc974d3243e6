"""Waits follow from what was seen, and one odd sample does not make them endless."""

from peerformer.protocol.timing import (
    DELTA_SECONDS,
    PATIENCE_AHEAD,
    WAIT_SECONDS_MAX,
    WAIT_SECONDS_MIN,
    Timing,
)

TRAIN_SECONDS_MAX = 30.0


def test_a_machine_that_slept_in_its_first_training_does_not_wait_for_hours() -> None:
    timing = Timing(TRAIN_SECONDS_MAX, trains_ahead=True)
    timing.trains.append(3_600.0)
    timing.checks.append(3_600.0)
    assert timing.commit_wait() <= TRAIN_SECONDS_MAX
    assert timing.base() <= 4 * DELTA_SECONDS + 2 * WAIT_SECONDS_MAX
    assert timing.first_view() <= TRAIN_SECONDS_MAX + WAIT_SECONDS_MAX + timing.base()


def test_who_trains_ahead_waits_a_part_of_a_training_for_the_commitments_of_others() -> None:
    ahead, strict = (Timing(TRAIN_SECONDS_MAX, trains_ahead=one) for one in (True, False))
    for timing in (ahead, strict):
        timing.spreads.append(0.1)
        timing.trains.append(20.0)
    assert strict.commit_wait() == WAIT_SECONDS_MIN
    assert ahead.commit_wait() == PATIENCE_AHEAD * 20.0
