"""What unlike text costs, and its liars: `python benchmarks/unlike.py [--seeds 3] [--rounds 10]`.

Seven peers, each with half of one of three kinds of text (Python's prose, its source, stories of
our making), train in the simulator as `peerformer simulate --replica real --unlike` has them: with
the plain mean and no filter, with the rule and filter of `--swarm.texts unlike`, and so against two
liars of each attack.
A row has bits per byte on each kind at the end, how far the worst kind is above the plain mean's
that nobody attacks, and how many contributions of honest peers were refused. With --json one
object.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import mean, stdev
from typing import Any

from peerformer.settings import resolve
from peerformer.simulate.learned import Learned
from peerformer.simulate.learning import Learning
from peerformer.simulate.plan import Plan, parse_adversaries
from peerformer.simulate.troubles import Troubled

PEERS, LIARS = 7, 2
UNLIKE = {"swarm.texts": "unlike"}
NONE = "none"
ATTACKS = (
    "sign-flip", "ipm-0.5", "ipm-adaptive", "alie", "mimic", "gaussian", "label-flip", "half-steps",
    "slow-drift", "sign-flip+lying-scorer",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A world: its rule, whether harm is refused, and what two liars do."""

    rule: str
    filters: bool
    attack: str
    seed: int
    rounds: int


def run(case: Case) -> Learned:
    """Run a world.

    Raises:
        RuntimeError: an invariant broke.
    """
    lies = "" if case.attack == NONE else f"{case.attack}*{LIARS}"
    plan = Plan(
        "calm",
        parse_adversaries(lies),
        PEERS,
        rounds=case.rounds,
        replica="real",
        staleness=0,
        learning=Learning(rule=case.rule, unlike=True, filters=case.filters),
    )
    outcome = Troubled(case.seed, plan).run()
    if outcome.violation is not None or outcome.learned is None:
        raise RuntimeError(f"{case} broke: {outcome.violation}")
    return outcome.learned


def row_of(found: Sequence[Learned], plain: Sequence[Learned]) -> dict[str, Any]:
    """Return what the seeds of one case come to, beside the plain mean's of the same seeds."""
    kinds = [dict(one.by_kind) for one in found]
    worse = [
        max(100 * (bits / dict(other.by_kind)[kind] - 1) for kind, bits in one.items())
        for one, other in zip(kinds, plain, strict=True)
    ]
    return {
        "bits_per_byte": {kind: round(mean(one[kind] for one in kinds), 3) for kind in kinds[0]},
        "worst_kind_percent": round(mean(worse), 2),
        "spread": round(stdev(worse), 2) if len(worse) > 1 else 0.0,
        "honest_refused": sum(one.honest_refused for one in found),
        "liars_counted": sum(one.liars_counted for one in found),
    }


def main() -> None:
    """Run all cases and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rule", default=resolve(overrides=UNLIKE).config.swarm.rule)
    parser.add_argument("--attacks", nargs="+", default=ATTACKS)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    cases = [("mean", False, NONE), (asked.rule, True, NONE)]
    cases += [(asked.rule, True, attack) for attack in asked.attacks]
    seeds = range(1, asked.seeds + 1)
    worlds = [Case(*case, seed, asked.rounds) for case in cases for seed in seeds]
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(run, worlds))
    by_case = {
        case: found[index * asked.seeds : (index + 1) * asked.seeds]
        for index, case in enumerate(cases)
    }
    rows = [
        {"rule": rule, "filter": filters, "attack": attack}
        | row_of(by_case[rule, filters, attack], by_case[cases[0]])
        for rule, filters, attack in cases
    ]
    if asked.json:
        json.dump(rows, sys.stdout, indent=1)
        return
    kinds = list(rows[0]["bits_per_byte"])
    print(f"| rule | attack | {' | '.join(kinds)} | worst kind | honest refused | liars counted |")
    print("|---|---|" + "--:|" * (len(kinds) + 3))
    for row in rows:
        bits = " | ".join(str(row["bits_per_byte"][kind]) for kind in kinds)
        worst = f"{row['worst_kind_percent']:+.2f} ± {row['spread']:.2f} %"
        name = f"`{row['rule']}`" + ("" if row["filter"] else ", no filter")
        print(
            f"| {name} | {row['attack']} | {bits} | {worst} | {row['honest_refused']}"
            f" | {row['liars_counted']} |"
        )


if __name__ == "__main__":
    main()
