"""Replacement policies: the papers' algorithms, written again as they stand there."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.model.replacement import (
    POLICIES,
    AdaptiveReplacement,
    LeastRecentlyUsed,
    SmallMainGhost,
)

every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
requests_of_keys = st.lists(st.integers(0, 25), max_size=300)


class ArcOfThePaper:
    """Figure 4 in lists, LRU end first; `t1` and `t2` are the cache."""

    def __init__(self, c):
        self.c, self.p = c, 0
        self.t1, self.t2, self.b1, self.b2 = [], [], [], []

    def replace(self, x):
        t1 = len(self.t1)
        if t1 >= 1 and (t1 > self.p or (x in self.b2 and t1 == self.p)):
            self.b1.append(self.t1.pop(0))
        else:
            self.b2.append(self.t2.pop(0))

    def request(self, x):
        hit = x in self.t1 + self.t2
        if hit:
            (self.t1 if x in self.t1 else self.t2).remove(x)
            self.t2.append(x)
        elif x in self.b1:
            delta = 1 if len(self.b1) >= len(self.b2) else len(self.b2) / len(self.b1)
            self.p = min(self.p + delta, self.c)
            self.replace(x)
            self.b1.remove(x)
            self.t2.append(x)
        elif x in self.b2:
            delta = 1 if len(self.b2) >= len(self.b1) else len(self.b1) / len(self.b2)
            self.p = max(self.p - delta, 0)
            self.replace(x)
            self.b2.remove(x)
            self.t2.append(x)
        else:
            total = len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2)
            if len(self.t1) + len(self.b1) == self.c:
                if len(self.t1) < self.c:
                    self.b1.pop(0)
                    self.replace(x)
                else:
                    self.t1.pop(0)
            elif total >= self.c:
                if total == 2 * self.c:
                    self.b2.pop(0)
                self.replace(x)
            self.t1.append(x)
        return hit

    def cached(self):
        return set(self.t1 + self.t2)


class S3FifoOfThePaper:
    """Algorithm 1 in lists, tail first."""

    def __init__(self, c):
        self.c, self.s_size = c, max(1, int(c * 0.1))
        self.m_size = max(1, c - self.s_size)
        self.s, self.m, self.g, self.freq = [], [], [], {}

    def request(self, x):
        if x in self.s or x in self.m:
            self.freq[x] = min(self.freq[x] + 1, 3)
            return True
        while len(self.s) + len(self.m) >= self.c:
            if len(self.s) >= self.s_size or not self.m:
                self.evict_s()
            else:
                self.evict_m()
        if x in self.g:
            self.g.remove(x)
            self.m.append(x)
        else:
            self.s.append(x)
        self.freq[x] = 0
        return False

    def evict_s(self):
        evicted = False
        while not evicted and self.s:
            t = self.s.pop(0)
            if self.freq[t] > 1:
                if len(self.m) >= self.m_size:
                    self.evict_m()
                self.m.append(t)
                self.freq[t] = 0
            else:
                self.g = [*self.g, t][-self.m_size :]
                evicted = True

    def evict_m(self):
        while self.freq[self.m[0]] > 0:
            t = self.m.pop(0)
            self.freq[t] -= 1
            self.m.append(t)
        self.m.pop(0)

    def cached(self):
        return set(self.s + self.m)


class LruOfTheBook:
    def __init__(self, c):
        self.c, self.keys = c, []

    def request(self, x):
        hit = x in self.keys
        self.keys = [*(key for key in self.keys if key != x), x][-self.c :]
        return hit

    def cached(self):
        return set(self.keys)


PLAIN = {
    AdaptiveReplacement: ArcOfThePaper,
    SmallMainGhost: S3FifoOfThePaper,
    LeastRecentlyUsed: LruOfTheBook,
}


@every_policy
@given(capacity=st.integers(1, 12), keys=requests_of_keys)
@settings(max_examples=150, deadline=None)
def test_each_answer_is_that_of_the_paper_and_evictions_say_who_is_left(policy, capacity, keys):
    fast, plain, there = policy(capacity), PLAIN[policy](capacity), set()
    for key in keys:
        answer = fast.request(key)
        assert answer.hit == plain.request(key)
        assert set(answer.evicted) <= there and key not in answer.evicted
        there = (there - set(answer.evicted)) | {key}
        assert there == plain.cached() == {k for k in range(26) if k in fast}
        assert len(fast) == len(there) <= capacity


@every_policy
@pytest.mark.parametrize("capacity", [3, 10, 24])
def test_long_traces_of_changing_habits_are_answered_as_in_the_paper(policy, capacity):
    """Popular keys that change, scans, and loops longer than the cache, in turns."""
    seed = 17
    print(f"seed {seed}")
    rng, fast, plain = random.Random(seed), policy(capacity), PLAIN[policy](capacity)
    for n in range(12_000):
        match (n // 500) % 4:
            case 0:
                key = min(int(rng.paretovariate(0.6)), 60)
            case 1:
                key = 100 + n
            case 2:
                key = n % (capacity + 2)
            case _:
                key = 40 + rng.randrange(2 * capacity)
        assert fast.request(key).hit == plain.request(key), n
    assert {key for key in range(20_000) if key in fast} == plain.cached()


@given(capacity=st.integers(1, 9), keys=requests_of_keys)
@settings(max_examples=150, deadline=None)
def test_the_lists_of_arc_keep_the_invariants_of_the_paper(capacity, keys):
    """A.1 to A.5 of section III.B, and the bounds of the target."""
    arc = AdaptiveReplacement(capacity)
    for key in keys:
        arc.request(key)
        t1, t2, b1, b2 = (len(x) for x in (arc._t1, arc._t2, arc._b1, arc._b2))
        assert t1 + t2 <= capacity and t1 + b1 <= capacity
        assert t1 + t2 + b1 + b2 <= 2 * capacity
        assert t1 + t2 == capacity or (b1 == b2 == 0)
        assert 0 <= arc.target <= capacity


def hit_rate(policy, keys):
    return sum(policy.request(key).hit for key in keys) / len(keys)


def test_a_scan_washes_out_lru_only():
    """Twenty keys in use, and between two uses of all of them a long scan of keys used once."""
    fresh = itertools.count(1_000)
    trace = []
    for _ in range(30):
        trace += [key for key in range(20) for _ in range(2)] * 2
        trace += [next(fresh) for _ in range(60)]
    rates = {name: hit_rate(policy(40), trace) for name, policy in POLICIES.items()}
    assert rates["lru"] < 0.44 < 0.55 < min(rates["arc"], rates["s3-fifo"]), rates


def test_arc_learns_whether_new_or_frequent_keys_matter():
    seed = 11
    print(f"seed {seed}")
    rng = random.Random(seed)
    arc = AdaptiveReplacement(50)
    for n in range(4_000):  # each key twice, a little later: what is new matters
        arc.request(("recent", n // 2 if n % 2 else max(0, n // 2 - 30)))
    recent = arc.target
    for n in range(4_000):
        arc.request(("often", rng.randrange(60)) if n % 3 else ("once", n))
    assert arc.target < recent, (arc.target, recent)
