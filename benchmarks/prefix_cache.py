"""Compare replacement policies by hit rate: `python benchmarks/prefix_cache.py [--quick|--json]`.

Two kinds of traces. Of single keys: `zipf` (popularity falls with the rank, exponent 1), `scan` (a
few keys in use, and long runs of keys asked for once), `mixed` (half and half of both, and then
other popular keys). Of prompts, through the real prefix cache over pages: users who share system
prompts of Zipf popularity, and some prompts that nobody shares. Capacities are shares of the
different keys or pages of a trace. No time is measured: the figures are the same everywhere.
"""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator

from peerformer.model.prefix_cache import PrefixCache
from peerformer.model.replacement import POLICIES

SHARES = (0.01, 0.05, 0.1, 0.3)
SEEDS = (1, 2, 3)
PAGE_TOKENS = 16


def zipf(rng: random.Random, keys: int, first: int = 0) -> Iterator[int]:
    """Return keys without end, the r-th likeliest with probability proportional to 1 / r."""
    weights = list(itertools.accumulate(1 / rank for rank in range(1, keys + 1)))
    order = [first + key for key in range(keys)]
    rng.shuffle(order)
    while True:
        yield from rng.choices(order, cum_weights=weights, k=1_000)


def zipf_trace(rng: random.Random, length: int) -> list[int]:
    """Return requests of Zipf popularity."""
    return list(itertools.islice(zipf(rng, length // 20), length))


def scan_trace(rng: random.Random, length: int) -> list[int]:
    """Return requests for few keys, interrupted by runs of keys that are asked for once."""
    few, fresh = zipf(rng, length // 200), itertools.count(length)
    trace: list[int] = []
    while len(trace) < length:
        trace += itertools.islice(few, length // 50)
        trace += itertools.islice(fresh, length // 100)
    return trace[:length]


def mixed_trace(rng: random.Random, length: int) -> list[int]:
    """Return a Zipf part, a scanning part, and a Zipf part with other keys."""
    third = length // 3
    other = list(itertools.islice(zipf(rng, length // 20, first=10 * length), third))
    return [*zipf_trace(rng, third), *scan_trace(rng, third), *other]


TRACES: dict[str, Callable[[random.Random, int], list[int]]] = {
    "zipf": zipf_trace,
    "scan": scan_trace,
    "mixed": mixed_trace,
}


def hit_rates_of_keys(trace: list[int]) -> dict[str, dict[str, float]]:
    """Return share -> policy -> share of requests that hit."""
    different = len(set(trace))
    return {
        f"{share:g}": {
            name: sum(cache.request(key).hit for key in trace) / len(trace)
            for name, policy in POLICIES.items()
            for cache in [policy(max(1, int(share * different)))]
        }
        for share in SHARES
    }


class CountingPool:
    """Pages without memory behind them, counted by holders as the real pool's are."""

    page_size = PAGE_TOKENS

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._next = itertools.count()

    def take(self) -> int:
        """Return a new page, held once."""
        page = next(self._next)
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """Hold a page once more."""
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """Hold a page once less."""
        self._holders[page] -= 1
        if self._holders[page] == 0:
            del self._holders[page]


def prompts_of(rng: random.Random, count: int) -> Iterator[list[int]]:
    """Return prompts: mostly one of the shared beginnings and something of one's own."""
    beginnings = [
        [rng.randrange(50_000) for _ in range(rng.randrange(64, 512))] for _ in range(count // 20)
    ]
    popular = zipf(rng, len(beginnings))
    for _ in range(count):
        shared = beginnings[next(popular)] if rng.random() < 0.8 else []
        own = rng.randrange(16, 256)
        yield [*shared, *(rng.randrange(50_000) for _ in range(own))]


def hit_rates_of_prompts(rng: random.Random, count: int) -> dict[str, dict[str, float]]:
    """Return share -> policy -> share of whole pages of prompts that were there."""
    prompts = list(prompts_of(rng, count))
    pages = sum(len(prompt) // PAGE_TOKENS for prompt in prompts)
    rates: dict[str, dict[str, float]] = {}
    for share in SHARES:
        rates[f"{share:g}"] = {}
        for name, policy in POLICIES.items():
            pool = CountingPool()
            cache = PrefixCache(pool, policy(max(1, int(share * pages))))
            for prompt in prompts:
                held = cache.take(prompt)
                held += [pool.take() for _ in range(len(prompt) // PAGE_TOKENS - len(held))]
                cache.keep(prompt, held)
                for page in held:
                    pool.release(page)
            rates[f"{share:g}"][name] = cache.statistics().hit_rate
    return rates


def measure(length: int, prompts: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return trace -> share -> policy -> hit rate of each seed."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for seed in SEEDS:
        made = {
            name: hit_rates_of_keys(f(random.Random(seed), length)) for name, f in TRACES.items()
        }
        made["prompts"] = hit_rates_of_prompts(random.Random(seed), prompts)
        for trace, shares in made.items():
            for share, rates in shares.items():
                for policy, rate in rates.items():
                    of_share = found.setdefault(trace, {}).setdefault(share, {})
                    of_share.setdefault(policy, []).append(rate)
    return found


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    options = parser.parse_args()
    found = measure(20_000 if options.quick else 200_000, 400 if options.quick else 4_000)
    if options.json:
        json.dump(found, sys.stdout)
        return
    print(f"Hits, % of requests: mean of {len(SEEDS)} seeds (largest distance from it).")
    print("| trace | capacity | " + " | ".join(POLICIES) + " |")
    print("|---|---|" + "---|" * len(POLICIES))
    for trace, shares in found.items():
        for share, rates in shares.items():
            cells = []
            for policy in POLICIES:
                mean = sum(rates[policy]) / len(rates[policy])
                spread = max(abs(rate - mean) for rate in rates[policy])
                cells.append(f"{mean:.1%} ({spread:.1%})".replace("%", ""))
            print(f"| {trace} | {float(share):.0%} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
