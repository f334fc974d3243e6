"""How far a backdoor gets: `python benchmarks/backdoor.py [--seeds 3] [--rounds 10]`.

Liars train as honestly as all others, but teach the model an answer of their own to three bytes
that no text has. That raises no loss on held-out text, so neither the score filter nor a robust
rule is made to stop it; how much of it gets into the model is measured here, in the simulator as
`peerformer simulate --replica real --adversaries "backdoor*2"` has it: the share of 64 held-out
sequences to which, ended by the trigger, the model gives the liars' answer. With --json one object.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import mean

from peerformer.simulate.cell import NO_ATTACK, Cell, run_cell

INNER_STEPS = 10
SWARMS = ((8, 2), (13, 4), (16, 5))
RULES = ("mean", "robust")


def run(job: tuple[Cell, int]) -> tuple[float, float]:
    """Return the share answered, and bits per byte on honest text.

    Raises:
        RuntimeError: an invariant broke.
    """
    cell, rounds = job
    learned, broke = run_cell(cell, rounds, INNER_STEPS)
    bits = learned.bits_per_byte[-1] if learned.bits_per_byte else None
    if broke or bits is None:
        raise RuntimeError(f"{cell} broke: {broke}")
    return learned.backdoor_answered, bits


def main() -> None:
    """Run all swarms and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    cases = [
        (peers, liars, rule, attack)
        for peers, liars in SWARMS
        for rule in RULES
        for attack in (NO_ATTACK, "backdoor")
    ]
    jobs = [
        (Cell(attack, rule, "dense-int8", True, peers, liars, seed), asked.rounds)
        for peers, liars, rule, attack in cases
        for seed in range(1, asked.seeds + 1)
    ]
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(run, jobs))
    rows = []
    for index, (peers, liars, rule, attack) in enumerate(cases):
        mine = found[index * asked.seeds : (index + 1) * asked.seeds]
        answered, bits = mean(share for share, _ in mine), mean(bits for _, bits in mine)
        rows.append({"peers": peers, "liars": liars if attack != NO_ATTACK else 0, "rule": rule,
                     "answered": round(answered, 3), "bits_per_byte": round(bits, 3)})  # fmt: skip
    if asked.json:
        json.dump(rows, sys.stdout, indent=1)
        return
    print("| peers | liars | rule | trigger answered | bits per byte |\n|--:|--:|---|--:|--:|")
    for row in rows:
        share = f"{100 * row['answered']:.0f} %"
        print(f"| {row['peers']} | {row['liars']} | `{row['rule']}` | {share}"
              f" | {row['bits_per_byte']} |")  # fmt: skip


if __name__ == "__main__":
    main()
