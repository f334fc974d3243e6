"""Rules and bucketing on unlike data: `python benchmarks/digits.py [--all] [--seeds 3] [--json]`.

The setting of Karimireddy, He and Jaggi (arXiv 2006.09365): 25 workers of whom 5 are Byzantine, one
step a round, data alike (shuffled) or unlike (sorted by label), buckets of two or none. Prints
their mimic experiment (no worker momentum, 600 steps, accuracy in per cent over the last hundred
steps) beside the figures that its authors give; with `--all` also bit flip, label flip, IPM and
ALIE, with worker momentum. As a substitute for MNIST it takes scikit-learn's digits (1,797 images
of 8 x 8) and a network of one hidden layer, so the order of the rules can be compared, not the
figures. The rules are those of the swarm, in integers; their f is (K - 1) // 3, more than the 5
that attack.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from itertools import product
from statistics import mean, stdev

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from peerformer.gradients.aggregate import aggregate
from peerformer.gradients.compress import VALUE_MAX
from peerformer.gradients.contribution import Contribution
from peerformer.gradients.rules import Rule

WORKERS, BYZANTINE = 25, 5
HONEST = WORKERS - BYZANTINE
INPUTS, HIDDEN, CLASSES = 64, 32, 10
TEST_IMAGES, BATCH = 297, 32
RATE, MOMENTUM = 0.5, 0.9
LAST_STEPS, LOOK_EVERY = 100, 20  # accuracy is the mean over these
UNIT = 2.0**-22  # of a coordinate of a gradient; the largest is 2
IPM, ALIE = 0.1, 0.253  # ALIE's z for 25 workers and 5 Byzantine (arXiv 1902.06156)
ATTACKS = ("none", "bit flip", "label flip", "mimic", "IPM", "ALIE")
# Of mimic on MNIST, by the authors' repository (epfml/byzantine-robust-noniid-optimizer, outputs of
# exp2): data alike, unlike; then both with buckets.
PUBLISHED = {
    "mean": (93.20, 92.73, 93.17, 92.67),
    "krum": (90.36, 37.33, 91.64, 53.15),
    "coordinate-median": (90.80, 64.27, 91.91, 78.60),
    "geometric-median": (92.92, 78.93, 93.00, 91.17),
    "centred-clipping": (93.16, 91.53, 93.17, 92.56),
}

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Images:
    """Training images of each worker, (W, N, 64) and (W, N); test images, (M, 64) and (M,)."""

    x_WND: Floats
    y_WN: NDArray[np.int64]
    test_MD: Floats
    test_M: NDArray[np.int64]


def images(seed: int, *, unlike: bool) -> Images:
    """Deal the images out: to the honest by label or at random, to the others at random."""
    found = load_digits()
    order = np.random.default_rng(seed).permutation(len(found.target))
    x, y = found.data[order] / 16.0, found.target[order].astype(np.int64)
    test_x, test_y, x, y = x[:TEST_IMAGES], y[:TEST_IMAGES], x[TEST_IMAGES:], y[TEST_IMAGES:]
    share = len(y) // HONEST
    dealt = np.argsort(y, kind="stable") if unlike else np.arange(len(y))
    honest = dealt[: share * HONEST].reshape(HONEST, share)
    liars = np.random.default_rng(seed + 1).choice(len(y), (BYZANTINE, share))
    rows = np.concatenate([honest, liars])
    return Images(x[rows], y[rows], test_x, test_y)


class Network:
    """One hidden layer with ReLU; parameters as one vector."""

    shapes = ((INPUTS, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,))

    def __init__(self, seed: int) -> None:
        """Draw the parameters."""
        generator = np.random.default_rng(seed)
        parts = [generator.normal(size=s) / np.sqrt(s[0]) if len(s) > 1 else np.zeros(s)
                 for s in self.shapes]  # fmt: skip
        self.theta_P = np.concatenate([part.ravel() for part in parts])

    def _parts(self) -> list[Floats]:
        cuts = np.cumsum([np.prod(shape) for shape in self.shapes])[:-1]
        pieces = np.split(self.theta_P, cuts)
        return [piece.reshape(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def accuracy(self, x_MD: Floats, y_M: NDArray[np.int64]) -> float:
        """Return the share of images that it tells right."""
        w1, b1, w2, b2 = self._parts()
        scores = np.maximum(x_MD @ w1 + b1, 0) @ w2 + b2
        return float((scores.argmax(1) == y_M).mean())

    def gradients(self, x_WBD: Floats, y_WB: NDArray[np.int64]) -> Floats:
        """Return each worker's gradient of the mean cross entropy, (W, P)."""
        w1, b1, w2, b2 = self._parts()
        hidden = np.maximum(x_WBD @ w1 + b1, 0)
        scores = hidden @ w2 + b2
        odds = np.exp(scores - scores.max(-1, keepdims=True))
        delta = odds / odds.sum(-1, keepdims=True)
        np.put_along_axis(
            delta, y_WB[..., None], np.take_along_axis(delta, y_WB[..., None], 2) - 1, 2
        )
        delta /= x_WBD.shape[1]
        back = (delta @ w2.T) * (hidden > 0)
        W = len(x_WBD)
        parts = (
            x_WBD.transpose(0, 2, 1) @ back,
            back.sum(1),
            hidden.transpose(0, 2, 1) @ delta,
            delta.sum(1),
        )
        return np.concatenate([part.reshape(W, -1) for part in parts], 1)


def attacked(attack: str, momentum_WP: Floats) -> Floats:
    """Return what all workers send: the last ones are Byzantine, and know everything."""
    sent, honest = momentum_WP.copy(), momentum_WP[:HONEST]
    match attack:
        case "bit flip":
            sent[HONEST:] *= -1
        case "mimic":
            sent[HONEST:] = honest[0]
        case "IPM":
            sent[HONEST:] = -IPM * honest.mean(0)
        case "ALIE":
            sent[HONEST:] = honest.mean(0) - ALIE * honest.std(0)
    return sent


def combined(sent_WP: Floats, rule: Rule, seed: bytes) -> Floats:
    """Return what the rule makes of it, in integers."""
    whole = np.clip(np.rint(sent_WP / UNIT), -VALUE_MAX, VALUE_MAX).astype(np.int32)
    given = [Contribution.of(torch.from_numpy(row)) for row in whole]
    found = aggregate(given, rule=rule, seed=seed, recent_norms=()).update_P.numpy()
    return found * UNIT


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained with; `momentum` is that of the workers."""

    rule: str
    attack: str
    unlike: bool
    momentum: float


def run(case: Case, seed: int, steps: int) -> float:
    """Train, and return the accuracy on the test images in per cent, over the last steps."""
    data, network = images(seed, unlike=case.unlike), Network(seed)
    named = Rule.named(case.rule)
    y_WN = data.y_WN.copy()
    if case.attack == "label flip":
        y_WN[HONEST:] = CLASSES - 1 - y_WN[HONEST:]
    generator = np.random.default_rng(seed + 2)
    momentum_WP = np.zeros((WORKERS, len(network.theta_P)))
    rows, seen = np.arange(WORKERS)[:, None], []
    for step in range(steps):
        chosen = generator.integers(0, y_WN.shape[1], (WORKERS, BATCH))
        gradient_WP = network.gradients(data.x_WND[rows, chosen], y_WN[rows, chosen])
        momentum_WP = case.momentum * momentum_WP + (1 - case.momentum) * gradient_WP
        sent_WP = attacked(case.attack, momentum_WP)
        network.theta_P -= RATE * combined(sent_WP, named, step.to_bytes(32, "little"))
        left = steps - 1 - step
        if left < LAST_STEPS and left % LOOK_EVERY == 0:
            seen.append(network.accuracy(data.test_MD, data.test_M))
    return 100 * mean(seen)


Found = dict[Case, tuple[float, float]]  # mean and standard deviation over the seeds


def measured(cases: list[Case], seeds: int, steps: int) -> Found:
    """Run all cases."""
    found = {}
    for case in cases:
        scores = [run(case, seed, steps) for seed in range(seeds)]
        found[case] = (mean(scores), stdev(scores) if seeds > 1 else 0.0)
    return found


def bucketed(rule: str) -> str:
    """Return the rule behind buckets."""
    return f"bucketing+{rule}"


def print_beside(found: Found) -> None:
    """Print the published experiment: ours, and theirs in brackets."""
    print("\n| mimic | alike | unlike | alike, buckets | unlike, buckets |\n|---|--:|--:|--:|--:|")
    for rule, theirs in PUBLISHED.items():
        cells = []
        for published, (name, unlike) in zip(
            theirs, product((rule, bucketed(rule)), (False, True)), strict=True
        ):
            own, spread = found[Case(name, "mimic", unlike, 0.0)]
            cells.append(f"{own:.1f} ± {spread:.1f} ({published:.1f})")
        print(f"| {rule} | " + " | ".join(cells) + " |")
    robust = (found[Case("robust", "mimic", unlike, 0.0)] for unlike in (False, True))
    cells = [f"{own:.1f} ± {spread:.1f}" for own, spread in robust]
    print(f"| robust (the default here) | {cells[0]} | {cells[1]} | | |")


def print_all(found: Found) -> None:
    """Print every attack."""
    for unlike in (False, True):
        print(f"\n| {'unlike' if unlike else 'alike'} | {' | '.join(ATTACKS)} |")
        print("|---|" + "--:|" * len(ATTACKS))
        for name in dict.fromkeys(case.rule for case in found):
            cells = (found[Case(name, attack, unlike, MOMENTUM)] for attack in ATTACKS)
            print(f"| {name} | " + " | ".join(f"{m:.1f} ± {s:.1f}" for m, s in cells) + " |")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="the other attacks too, with momentum")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for rule in PUBLISHED for name in (rule, bucketed(rule))] + ["robust"]
    kinds = [(0.0, ("mimic",)), *([(MOMENTUM, ATTACKS)] if asked.all else [])]
    told: list[Found] = []
    for momentum, attacks in kinds:
        cases = [
            Case(name, attack, unlike, momentum)
            for unlike, attack, name in product((False, True), attacks, names)
        ]
        told.append(measured(cases, asked.seeds, asked.steps))
    if asked.json:
        rows = [
            {**asdict(case), "accuracy": round(own, 2), "spread": round(spread, 2)}
            for found in told
            for case, (own, spread) in found.items()
        ]
        print(json.dumps(rows))
        return
    print_beside(told[0])
    if asked.all:
        print_all(told[1])


if __name__ == "__main__":
    main()
