"""SAM and ASAM: the gradient of the point that the papers name, and the parameters put back."""

import math

import pytest
import torch
from torch import nn

from peerformer.config import OptimizerConfig
from peerformer.model.transformer import Transformer, initialise
from peerformer.train.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from peerformer.train.replica import Replica
from tests.train.test_replica import SHAPE, batch

CONFIGS = {
    "none": OptimizerConfig("adamw"),
    "sam": OptimizerConfig("adamw", sharpness="sam", sharpness_rho=0.1),
    "asam": OptimizerConfig("adamw", sharpness="asam", sharpness_rho=0.7, sharpness_eta=0.02),
}


def replica(kind: str) -> Replica:
    model = Transformer(SHAPE)
    initialise(model, 7)
    return Replica(model, build_optimizer(model, CONFIGS[kind]), clip_norm=0.0)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["sam", "asam"])
def test_the_gradient_is_that_of_the_worst_point_near_by(kind: str) -> None:
    plain, sharp, here = replica("none"), replica(kind), batch(4)
    before = sharp.digest()
    loss = plain.gradients([here])
    assert sharp.gradients([here]) == loss, "the loss is told where the parameters are"
    assert sharp.digest() == before, "to the bit"
    config = CONFIGS[kind]
    with torch.no_grad():  # equations 2 and 9 of the papers, written out
        weights = list(plain.model.parameters())
        T = [
            w.abs() + config.sharpness_eta if kind == "asam" and w.ndim >= 2 else torch.ones(1)
            for w in weights
        ]
        length = math.sqrt(
            sum(float((t * w.grad).pow(2).sum()) for t, w in zip(T, weights, strict=True))
        )
        for t, w in zip(T, weights, strict=True):
            w += config.sharpness_rho * t * t * w.grad / length
    plain.gradients([here])
    for mine, theirs in zip(gradients(sharp.model), gradients(plain.model), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6, rtol=1e-4)


def test_asam_does_not_see_a_layer_scaled_up_and_the_next_one_down() -> None:
    """Theorem 1 of its paper: that is what T is for. SAM, which measures in plain steps, does."""
    found = {}
    for kind in ("sam", "asam"):
        for scale in (1.0, 8.0):
            torch.manual_seed(5)
            net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 1, bias=False))
            with torch.no_grad():
                net[0].weight *= scale
                net[2].weight /= scale
            config = OptimizerConfig("sgd", sharpness=kind, sharpness_rho=0.5, sharpness_eta=0.0)
            optimizer = build_optimizer(net, config)
            x = torch.randn(32, 6)

            def loss(net: nn.Module = net, x: torch.Tensor = x) -> torch.Tensor:
                return (net(x) - x[:, :1]).pow(2).mean()

            loss().backward()
            with optimizer.sharpness.climbed(optimizer.named):
                found[kind, scale] = loss().item()
    assert math.isclose(found["asam", 1.0], found["asam", 8.0], rel_tol=1e-4)
    assert not math.isclose(found["sam", 1.0], found["sam", 8.0], rel_tol=0.05)


def test_a_gradient_that_is_not_finite_leads_nowhere_and_is_left_out() -> None:
    one = replica("sam")
    with torch.no_grad():
        one.model.layers[0].mlp.down_proj.weight[0, 0] = math.inf
    one.gradients([batch(2)])
    before = one.digest()
    assert one.apply(1.0).skipped and one.digest() == before


@pytest.mark.parametrize("name", ["muon", "adamw", "lion", "sgd"])
def test_around_each_optimizer_it_goes_on_bit_for_bit_from_a_saved_state(name: str) -> None:
    config = OptimizerConfig(name, learning_rate=0.01, sharpness="asam")

    def fresh() -> Replica:
        model = Transformer(SHAPE)
        initialise(model, 3)
        return Replica(model, build_optimizer(model, config), clip_norm=1.0)

    def steps(one: Replica, first: int, last: int) -> list[float]:
        losses = []
        for seed in range(first, last):
            losses.append(one.gradients([batch(4, seed)]))
            one.apply(1.0)
        return losses

    whole, parts = fresh(), fresh()
    losses = steps(whole, 0, 6)
    start = steps(parts, 0, 3)
    again = fresh()
    again.model.load_state_dict(parts.model.state_dict())
    load_optimizer_tensors(again.optimizer, optimizer_tensors(parts.optimizer))
    assert start + steps(again, 3, 6) == losses and again.digest() == whole.digest()
