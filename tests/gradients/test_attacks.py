"""Two colluding liars of seven against the whole integer path, on a noisy quadratic.

The swarm starts far from the optimum of `loss = |theta - optimum|^2 / 2`; an honest contribution is
a step towards it plus noise. The liars know every honest contribution of the round. What is shown
is the loss after the last round, as a share of the first; `python -m pytest -s` prints the table.
Against the mildest attack, IPM at half strength (Xie et al., arXiv 1903.03936), the robust rule is
no better than the mean: there it only has to stay near what it reaches without liars.
"""

import pytest
import torch

from peerformer.gradients.aggregate import aggregate
from peerformer.gradients.compress import encode, read
from peerformer.gradients.fixed_point import AgreedState, outer_step, to_float
from peerformer.gradients.rules import Rule

CODEC = "dense-int8"
HONEST, LIARS, SIZE, ROUNDS = 5, 2, 3000, 30
NOISE = 0.01  # of each coordinate; the signal starts at 0.01 and shrinks
SEEDS = (1, 2, 3)


def shifted(honest, z):
    """ALIE (Baruch et al., arXiv 1902.06156): z standard deviations off, hidden in the spread."""
    stacked = torch.stack(honest)
    return [stacked.mean(0) - z * stacked.std(0)] * LIARS


ATTACKS = {
    "none": None,
    "flip at the same norm": lambda honest: [-update for update in honest[:LIARS]],
    "flip, ten times": lambda honest: [-10 * update for update in honest[:LIARS]],
    "IPM 0.5": lambda honest: [-0.5 * torch.stack(honest).mean(0)] * LIARS,
    "IPM 1": lambda honest: [-torch.stack(honest).mean(0)] * LIARS,
    "ALIE 1.5": lambda honest: shifted(honest, 1.5),
}


def loss_left(attack, rule, seed):
    """Share of the first loss that is left after the last round."""
    generator = torch.Generator().manual_seed(seed)
    optimum = torch.randn(SIZE, generator=generator) * 0.1
    state = AgreedState(*[torch.zeros(SIZE, dtype=torch.int32)] * 2, ())
    residuals = [torch.zeros(SIZE)] * (HONEST + LIARS)
    for round_number in range(ROUNDS):
        gradient = 0.1 * (to_float(state.theta_P) - optimum)
        noise = NOISE * torch.randn(HONEST + LIARS, SIZE, generator=generator)
        updates = list(gradient + noise)
        if ATTACKS[attack]:
            updates[HONEST:] = ATTACKS[attack](updates[:HONEST])
        contributions = []
        for index, update in enumerate(updates):
            encoded = encode(update, residuals[index], codec=CODEC, feedback=1.0)
            residuals[index] = encoded.residual_P
            contributions.append(read(encoded.blob, SIZE, CODEC))
        outcome = aggregate(
            contributions,
            rule=Rule.named(rule),
            seed=round_number.to_bytes(4, "little"),
            recent_norms=state.norms,
        )
        state = outer_step(
            state,
            outcome.update_P,
            learning_rate_q16=round(0.7 * 2**16),
            momentum_q16=2**15,
            nesterov=True,
            update_norm=outcome.norm,
        )
    distance = (to_float(state.theta_P) - optimum).double()
    return float(distance.square().sum() / optimum.double().square().sum())


@pytest.fixture(scope="module")
def table():
    losses = {
        (attack, rule): sorted(loss_left(attack, rule, seed) for seed in SEEDS)
        for attack in ATTACKS
        for rule in ("mean", "robust")
    }
    print(f"\nseeds {SEEDS}; loss left, median (worst)")
    for attack in ATTACKS:
        shown = (
            f"{rule} {losses[attack, rule][1]:.4f} ({losses[attack, rule][-1]:.4f})"
            for rule in ("mean", "robust")
        )
        print(f"{attack:22}", "   ".join(shown))
    return losses


def test_without_liars_the_robust_rule_learns_as_well_as_the_mean(table):
    assert table["none", "robust"][-1] < 0.1
    assert table["none", "robust"][1] < 1.5 * table["none", "mean"][1]


@pytest.mark.parametrize(
    "attack", ["flip at the same norm", "flip, ten times", "IPM 1", "ALIE 1.5"]
)
def test_the_robust_rule_withstands_what_the_mean_does_not(table, attack):
    assert table[attack, "robust"][-1] < 0.6 * table[attack, "mean"][0]


@pytest.mark.parametrize(
    ("attack", "share"),
    [
        ("flip at the same norm", 1.5),
        ("flip, ten times", 2),
        ("IPM 0.5", 2),
        ("IPM 1", 2),
        ("ALIE 1.5", 5),
    ],
)
def test_liars_cost_the_robust_rule_a_bounded_share(table, attack, share):
    assert table[attack, "robust"][-1] < share * table["none", "robust"][0]
