"""Schedules: their shapes, PyTorch's plateau, and combinations that make no sense."""

import math
from dataclasses import replace
from random import Random

import pytest
import torch

from peerformer.config import TrainingConfig
from peerformer.errors import ConfigError
from peerformer.settings import resolve
from peerformer.train.schedule import (
    learning_rate_scale,
    plateau_scale,
    validations_since_best,
)

RUN = TrainingConfig(steps=100, warmup_steps=10, final_fraction=0.1)
NAMES = ("linear", "cosine", "wsd", "constant", "inverse-sqrt", "plateau")


def scales(name: str, settings: TrainingConfig = RUN, steps: int = 100) -> list[float]:
    settings = replace(settings, schedule=name)
    return [learning_rate_scale(step, settings) for step in range(steps)]


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_warms_up_to_the_peak_and_never_rises_again(name: str) -> None:
    found = scales(name, steps=150)
    assert found[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert found[9] == 1.0 and max(found) == 1.0
    assert all(a >= b for a, b in zip(found[9:], found[10:], strict=False)), "downhill"


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_what_decays_ends_at_its_last_share_and_stays_there(name: str) -> None:
    found = scales(name, steps=120)
    assert found[98] > found[99] == pytest.approx(0.1) and found[119] == pytest.approx(0.1)


def test_the_shapes_are_those_of_their_papers() -> None:
    cosine, wsd, root = scales("cosine"), scales("wsd"), scales("inverse-sqrt")
    share = (54 - 10) / 89
    assert cosine[54] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2)
    assert wsd[10:80] == [1.0] * 70, "stable"
    assert wsd[84] == pytest.approx(1 - 0.9 * math.sqrt(5 / 20)), "then 1 - sqrt"
    assert root[39] == pytest.approx(0.5) and root[89] == pytest.approx(1 / 3)
    assert scales("constant")[10:] == scales("plateau")[10:] == [1.0] * 90


def test_a_plateau_is_found_as_pytorch_finds_it() -> None:
    for seed in range(20):
        print(f"seed {seed}")
        random = Random(seed)
        settings = replace(
            RUN,
            plateau_patience=random.randrange(4),
            plateau_factor=random.choice((0.1, 0.5, 0.9)),
            final_fraction=random.choice((0.0, 0.1)),
        )
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            factor=settings.plateau_factor,
            patience=settings.plateau_patience,
            min_lr=settings.final_fraction,
            eps=0.0,
        )
        losses, rate = [], 5.0
        for _ in range(40):
            rate *= random.choice((0.9, 0.99995, 1.0, 1.02))
            losses.append(rate)
            theirs.step(rate)
            ours = plateau_scale(losses, settings)
            assert ours == pytest.approx(optimizer.param_groups[0]["lr"]), losses


def test_validations_since_the_best_one_count_what_is_not_clearly_better() -> None:
    assert validations_since_best([]) == validations_since_best([3.0]) == 0
    assert validations_since_best([3.0, 2.0, 1.99999, math.nan, 2.5]) == 3
    assert validations_since_best([math.nan, math.nan]) == 2


@pytest.mark.parametrize(
    "given",
    [
        {"training.schedule": "inverse-sqrt", "training.warmup_steps": 0},
        {"training.schedule": "wsd", "training.steps": 50, "training.warmup_steps": 45},
        {"training.schedule": "plateau", "training.steps": 50},
        {"training.patience": 3, "training.steps": 50},
    ],
)
def test_a_schedule_that_cannot_be_is_refused_and_the_hint_cures_it(given: dict) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve(overrides=given)
    hint = refused.value.hint
    assert hint is not None and hint.startswith("--set ")
    name, _, value = hint.removeprefix("--set ").partition("=")
    resolve(overrides={**given, name: value})
