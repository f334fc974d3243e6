"""float16: the scale moves as PyTorch's does, and an overflow costs a step and nothing else."""

import math
from random import Random

import pytest
import torch

from peerformer.train import loss_scale as module
from peerformer.train.loss_scale import LossScale
from peerformer.train.replica import Replica
from tests.train.test_guards import batch, replica


def half(scale: float) -> Replica:
    one = replica()
    one.autocast_dtype, one.loss_scale = torch.float16, LossScale(scale)
    return one


def test_the_scale_moves_as_that_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GOOD_STEPS", 3)
    random, ours = Random(4), LossScale(1_024.0)
    theirs = torch.amp.GradScaler("cpu", init_scale=1_024.0, growth_interval=3)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for _ in range(60):
        is_finite = random.random() < 0.8
        theirs.scale(weight.sum()).backward()
        if not is_finite:
            weight.grad.fill_(math.inf)
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(is_finite=is_finite)
        assert ours.scale == theirs.get_scale() > 1.0, "seed 4"


def test_an_overflow_leaves_the_step_out_halves_the_scale_and_is_no_divergence() -> None:
    one = half(2.0**31)
    before = one.digest()
    one.gradients([batch(2)])
    applied = one.apply(1.0)
    assert applied.skipped and applied.overflowed and one.digest() == before
    assert one.loss_scale.scale == 2.0**30 and one.skipped_in_a_row == 0
    for _ in range(24):
        one.gradients([batch(2)])
        if not one.apply(1.0).skipped:
            break
    assert one.loss_scale.scale < 2.0**30 and one.digest() != before, "it recovers"


def test_at_a_scale_of_one_it_is_not_the_scale() -> None:
    one = half(1.0)
    next(iter(one.optimizer.named.values())).data.fill_(math.nan)
    one.gradients([batch(2)])
    applied = one.apply(1.0)
    assert applied.skipped and not applied.overflowed and one.skipped_in_a_row == 1


def test_gradients_that_float16_would_lose_are_kept_by_the_scale() -> None:
    """At a loss 2^-22 as large, plain float16 rounds gradients to zero."""
    small = 2.0**-22
    found = {}
    for scale in (1.0, 2.0**20):
        one = half(scale)
        loss = one.loss
        one.loss = lambda tokens, targets, loss=loss: loss(tokens, targets) * small
        one.gradients([batch(4)])
        found[scale] = torch.cat([g.flatten() for g in one._gradients()]) / small
    exact = replica()
    exact.gradients([batch(4)])
    exact_P = torch.cat([g.flatten() for g in exact._gradients()])
    errors = {scale: float((g - exact_P).norm() / exact_P.norm()) for scale, g in found.items()}
    assert errors[2.0**20] < 0.01 and errors[1.0] > 0.5, errors


def test_it_learns_as_float32_does() -> None:
    losses: list[list[float]] = []
    for one in (replica(), half(65_536.0)):
        losses.append([])
        for _ in range(30):
            losses[-1].append(one.gradients([batch(2)]))
            one.apply(1.0)
    assert losses[1][-1] < losses[0][0] - 1.0
    assert all(math.isclose(a, b, rel_tol=0.05) for a, b in zip(*losses, strict=True))
