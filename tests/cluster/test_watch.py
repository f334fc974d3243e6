"""What is said of a rank that is gone, or hangs, from the beats of all of them."""

import json

from peerformer.cluster.watch import Seen, judge


def seen(**ranks):
    """Beats by rank: (count, seconds since its last beat, seconds since its count moved)."""
    found = {}
    for number, (count, silent, still, *patient) in enumerate(ranks.values()):
        found[number] = Seen(1, count, "at", bool(patient), 100.0 - silent, 100.0 - still)
    return found


def test_all_is_well_while_counts_move():
    assert judge(seen(a=(5, 0, 1), b=(5, 1, 2)), 100.0, 10.0) is None


def test_a_silent_rank_is_named_even_while_others_are_patient():
    found = judge(seen(a=(5, 0, 1, "patient"), b=(5, 11, 11)), 100.0, 10.0)
    assert found is not None and found[0] == 1 and "not answered for 11 s" in found[1]


def test_a_rank_that_stays_behind_is_named_and_not_those_that_wait_for_it():
    found = judge(seen(a=(6, 0, 12), b=(5, 0, 13), c=(6, 0, 12)), 100.0, 10.0)
    assert found is not None and found[0] == 1 and "waiting for it" in found[1]


def test_a_rank_that_stays_behind_and_fell_silent_since_has_not_answered():
    found = judge(seen(a=(6, 0, 12), b=(5, 3, 11)), 100.0, 10.0)
    assert found is not None and found[0] == 1 and "not answered for 3 s" in found[1]


def test_a_rank_that_prepares_text_may_take_as_long_as_it_wants():
    assert judge(seen(a=(6, 0, 5000, "patient"), b=(6, 0, 5000)), 100.0, 10.0) is None


def test_where_all_stand_still_together_nobody_is_named():
    found = judge(seen(a=(6, 0, 12), b=(6, 0, 11)), 100.0, 10.0)
    assert found is not None and found[0] is None


def test_time_counts_from_the_last_change_of_a_beat():
    it = Seen(beat_since=0.0, count_since=0.0)
    it.take(json.dumps([1, 1, "x", False]).encode(), 5.0)
    it.take(json.dumps([2, 1, "x", False]).encode(), 9.0)
    it.take(json.dumps([2, 1, "x", False]).encode(), 20.0)
    assert (it.beat_since, it.count_since) == (9.0, 5.0)
