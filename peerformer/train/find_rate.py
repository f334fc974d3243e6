"""A learning rate for a model and a text, found by trying all of them once, from small to large.

The learning-rate range test: at each step the rate grows by the same factor, until what was
learned is lost again. The rate at which the loss falls fastest is large enough to learn and small
enough to be safe, and is what is suggested. With two rates (Muon's and AdamW's) both move
together, in the proportion in which they are set. The model that is tried on is thrown away.

Source: Smith, Cyclical Learning Rates for Training Neural Networks, 2017, arXiv 1506.01186,
section 3.3.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peerformer.config import Config, OptimizerConfig
from peerformer.errors import DivergedError
from peerformer.train.hardware import compute_settings, memory_remedy, memory_told
from peerformer.train.loop import prepare_training
from peerformer.train.run_directory import RunDirectory
from peerformer.train.training import Training

SMOOTHED_SHARE = 20  # the loss is averaged over this part of the sweep, against the noise of steps
LOST_SHARE = 0.5  # of what was learned: when so much is lost again, larger rates are not tried
LOST_LEAST = 0.02  # of the loss, so that noise before anything was learned does not end the sweep
POINTS_MIN = 10  # fewer say nothing about where a curve is steepest


@dataclass(frozen=True, slots=True)
class Point:
    """One step: its rate and its loss, in nats a token, as it was and averaged with others."""

    rate: float
    loss: float
    smooth_loss: float


@dataclass(frozen=True, slots=True)
class Sweep:
    """All steps that were made, and what follows from them.

    Attributes:
        setting: the dotted name of the rate.
        points: one a step.
        suggested: the rate at which the loss falls fastest.
        factor: of all rates as they are set, to come to the suggested one.
        blew_up: the sweep ended because the loss rose, not because of the largest rate.
    """

    setting: str
    points: tuple[Point, ...]
    suggested: float
    factor: float
    blew_up: bool


def rate_setting(optimizer: OptimizerConfig) -> str:
    """Return the dotted name of the rate that matters most with an optimizer."""
    return f"optimizer.{'muon_' if optimizer.name == 'muon' else ''}learning_rate"


def find_rate(
    config: Config,
    *,
    least: float,
    most: float,
    steps: int,
    report: Callable[[str], None] = lambda _: None,
) -> Sweep:
    """Sweep the learning rate from `least` to `most` in so many steps.

    Raises:
        DivergedError: no rate teaches this model anything.
        ConfigError, DataError, CheckpointError.
    """
    setting = rate_setting(config.optimizer)
    unit = float(getattr(config.optimizer, setting.partition(".")[2]))
    rates = np.geomspace(least, most, steps)
    with (
        compute_settings(config.training),
        memory_told("a step", memory_remedy(config.training)),
        tempfile.TemporaryDirectory(prefix="peerformer-") as scratch,
    ):
        training = prepare_training(config, RunDirectory(Path(scratch), resumed=False), report)
        training.replica.model.train()
        losses, blew_up = _losses(training, rates / unit)
    suggested = _steepest(rates[: len(losses)], _smoothed(losses, steps))
    smooth = _smoothed(losses, steps)
    points = tuple(
        Point(float(rate), loss, float(average))
        for rate, loss, average in zip(rates, losses, smooth, strict=False)
    )
    return Sweep(setting, points, suggested, suggested / unit, blew_up)


def _losses(training: Training, scales: np.ndarray) -> tuple[list[float], bool]:
    """Make a step at each scale; returns the losses, and whether the last ones blew up."""
    losses: list[float] = []
    for step, scale in enumerate(scales):
        loss = training.replica.gradients(training.passes(step))
        if not math.isfinite(loss):
            return losses, True
        losses.append(loss)
        if _is_lost(_smoothed(losses, len(scales))):
            return losses, True
        training.replica.apply(float(scale))
    return losses, False


def _smoothed(losses: list[float], steps: int) -> np.ndarray:
    """Average each loss with its neighbours on both sides, fewer at the ends."""
    reach = max(1, steps // SMOOTHED_SHARE // 2)
    sums = np.cumsum([0.0, *losses])
    index = np.arange(len(losses))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(losses))
    return (sums[high] - sums[low]) / (high - low)


def _is_lost(smooth: np.ndarray) -> bool:
    first, best = smooth[0], smooth.min()
    return bool(smooth[-1] - best > max(LOST_SHARE * (first - best), LOST_LEAST * first))


def _steepest(rates: np.ndarray, smooth: np.ndarray) -> float:
    """Return the rate at which the averaged loss falls fastest, before it is least.

    Raises:
        DivergedError: it falls nowhere.
    """
    end = int(smooth.argmin()) + 1
    if end < 3 or len(smooth) < POINTS_MIN:
        raise DivergedError(
            "no learning rate teaches this model anything",
            why=f"the loss was least at {rates[max(end - 1, 0)]:.1e}, where the sweep began",
            hint="sweep from a smaller rate: --least 1e-9, or more steps: --steps 300",
        )
    slopes = np.gradient(smooth[:end], np.log(rates[:end]))
    return float(rates[int(slopes.argmin())])
