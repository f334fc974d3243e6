"""One batch by heart: whether model, loss and optimizer can learn anything at all.

The run's own steps are made with the first batch again and again. A loss that does not come near
zero means that the learning rate is wrong, or something is broken; that it does says nothing about
other text. Nothing is kept.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peerformer.config import Config
from peerformer.data.batches import Batch, Batches
from peerformer.train.hardware import compute_settings, memory_remedy, memory_told
from peerformer.train.loop import prepare_training
from peerformer.train.run_directory import RunDirectory

# Nats a token. What cannot be known, such as how a window begins, costs less in a batch.
NEAR_ZERO = 0.1


@dataclass(frozen=True, slots=True)
class Overfit:
    """What came of it: the losses of the first and of the last step, in nats a token."""

    steps: int
    first_loss: float
    loss: float

    @property
    def learned(self) -> bool:
        """Whether the batch was learned by heart."""
        return self.loss <= NEAR_ZERO


class OneBatch(Batches):
    """The first batch of a text, whatever step is asked for."""

    def batch(self, seed: int, step: int, *, batch_size: int, slots: range | None = None) -> Batch:
        """Return the batch of step 0."""
        return Batches.batch(self, seed, 0, batch_size=batch_size, slots=slots)


def overfit(
    config: Config,
    *,
    on_event: Callable[[Any], None] = lambda _: None,
    report: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Overfit:
    """Make steps with one batch until its loss is near zero, or as many as the settings say.

    Raises:
        ConfigError, DataError, CheckpointError, DivergedError.
    """
    with (
        compute_settings(config.training),
        memory_told("a step", memory_remedy(config.training)),
        tempfile.TemporaryDirectory(prefix="peerformer-") as scratch,
    ):
        training = prepare_training(config, RunDirectory(Path(scratch), resumed=False), report)
        training.batches = OneBatch(training.batches.shards, config.training.sequence_length)
        first = loss = math.nan
        while training.replica.step < config.training.steps and not should_stop():
            done = training.step()
            on_event(done)
            loss = done.loss
            first = loss if math.isnan(first) else first
            if loss <= NEAR_ZERO:
                break
        return Overfit(training.replica.step, first, loss)
