"""The loop of one process; every other mode is this loop with one line changed.

A step is batch -> gradients -> apply. Batches are random access and the learning rate is a
function of the step, so a run that was killed goes on as if nothing had been: the same losses,
bit for bit, on the same machine with the same threads.
"""

import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from peerformer import events
from peerformer.config import Config
from peerformer.data.batches import Batch, Batches
from peerformer.data.prepare import Prepared, prepare
from peerformer.errors import DivergedError
from peerformer.events import Journal
from peerformer.model.transformer import Transformer, count_parameters, initialise
from peerformer.train.checkpoint import latest, load_checkpoint, save_checkpoint
from peerformer.train.evaluate import evaluate
from peerformer.train.optimizer import build_optimizer
from peerformer.train.precision import autocast_dtype
from peerformer.train.replica import Replica
from peerformer.train.run_directory import RunDirectory, open_run
from peerformer.train.schedule import learning_rate_scale

DIVERGED_STEPS = 8  # so many gradients in a row that are not finite will not become so again
SPEED_STEPS = 20  # the speed shown is that of the last so many steps
COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "tokens_per_second")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a training run ended. `stopped` if it was interrupted before its last step."""

    run: str
    steps: int
    loss: float
    validation_bits_per_byte: float
    tokens_per_second: float
    seconds: float
    checkpoint: str
    stopped: bool


@dataclass(slots=True)
class Training:
    """One run in progress."""

    config: Config
    directory: RunDirectory
    prepared: Prepared
    replica: Replica
    batches: Batches
    held_out: Batches
    tell: Callable[[events.Event], None]
    losses: list[tuple[int, float]] = field(default_factory=list)
    loss: float = math.nan
    bits_per_byte: float = math.nan
    checkpoint: Path | None = None
    seconds: float = 0.0
    tokens: int = 0

    # --- one step ------------------------------------------------------------------------------

    def step(self) -> tuple[float, float]:
        """Run one step; returns the gradient's norm and the share of the learning rate."""
        settings, replica = self.config.training, self.replica
        scale = learning_rate_scale(
            replica.step,
            steps=settings.steps,
            warmup_steps=settings.warmup_steps,
            final_fraction=settings.final_fraction,
        )
        self.loss = replica.gradients(self._passes(replica.step))
        applied = replica.apply(scale)
        if replica.skipped_in_a_row >= DIVERGED_STEPS:
            raise DivergedError(
                f"the loss is not finite any more at step {replica.step}",
                where=str(self.directory.path),
                why=f"{DIVERGED_STEPS} gradients in a row were not finite",
                hint="--set optimizer.learning_rate=… lower; the last checkpoint is whole",
            )
        return applied.gradient_norm, scale

    def _passes(self, step: int) -> list[Batch]:
        settings = self.config.training
        size = settings.batch_size // settings.accumulation
        return [
            self.batches.batch(
                settings.seed,
                step,
                batch_size=settings.batch_size,
                slots=range(start, start + size),
            )
            for start in range(0, settings.batch_size, size)
        ]

    # --- looking and saving ----------------------------------------------------------------------

    def validate(self) -> None:
        """Measure bits per byte on held-out text."""
        found = evaluate(
            self.replica.model,
            self.held_out,
            sequences=self.config.training.validation_sequences,
            byte_lengths_V=self.prepared.tokenizer.byte_lengths_V(),
            autocast_dtype=self.replica.autocast_dtype,
        )
        self.bits_per_byte = found.bits_per_byte
        self.tell(
            events.Validated(
                step=self.replica.step,
                loss=found.loss_nats_per_token,
                bits_per_byte=found.bits_per_byte,
            )
        )

    def save(self) -> None:
        """Save a checkpoint."""
        position = {"seconds": self.seconds, "tokens": self.tokens, "loss": self.loss}
        self.checkpoint = save_checkpoint(
            self.directory.path,
            replica=self.replica,
            tokenizer_bytes=self.prepared.tokenizer.to_bytes(),
            position=position,
            keep=self.config.training.keep_checkpoints,
        )
        digest = self.replica.digest()
        path = str(self.checkpoint)
        self.tell(events.CheckpointSaved(step=self.replica.step, path=path, digest=digest))

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one."""
        newest = latest(self.directory.path)
        if newest is None:
            return
        position = load_checkpoint(newest, self.replica)
        self.checkpoint = newest
        self.seconds, self.tokens = float(position["seconds"]), int(position["tokens"])
        self.loss = float(position["loss"])

    def _forget_metrics_after(self, step: int) -> None:
        """Drop rows of steps that a killed run made after its last checkpoint: they come again."""
        try:
            lines = self.directory.metrics.read_text().splitlines(keepends=True)
        except OSError:
            return
        kept = [ln for ln in lines[1:] if ln.endswith("\n") and int(ln.split(",")[0]) <= step]
        self.directory.metrics.write_text("".join([*lines[:1], *kept]))

    # --- the loop --------------------------------------------------------------------------------

    def run(self, should_stop: Callable[[], bool]) -> TrainResult:
        """Train to the last step, or until asked to stop after a step."""
        settings, replica = self.config.training, self.replica
        tokens_a_step = settings.batch_size * settings.sequence_length
        began, speed, stopped = time.monotonic() - self.seconds, 0.0, False
        replica.model.train()
        self._forget_metrics_after(replica.step)
        with self.directory.metrics.open("a", newline="") as file:
            rows = csv.writer(file)
            if file.tell() == 0:
                rows.writerow(COLUMNS)
            recent: list[float] = [time.monotonic()]
            while replica.step < settings.steps and not stopped:
                norm, scale = self.step()
                recent = [*recent, time.monotonic()][-SPEED_STEPS - 1 :]
                speed = tokens_a_step * (len(recent) - 1) / (recent[-1] - recent[0])
                self.tokens += tokens_a_step
                self.seconds = recent[-1] - began
                rate = scale * self.config.optimizer.learning_rate
                rows.writerow((replica.step, repr(self.loss), rate, norm, round(speed, 1)))
                self.tell(
                    events.StepDone(
                        step=replica.step,
                        loss=self.loss,
                        learning_rate=rate,
                        tokens_per_second=speed,
                        gradient_norm=norm,
                    )
                )
                stopped = should_stop() and replica.step < settings.steps
                last = replica.step == settings.steps
                if replica.step % settings.validate_every == 0 or last:
                    self.validate()
                if replica.step % settings.checkpoint_every == 0 or last or stopped:
                    file.flush()
                    self.save()
        if math.isnan(self.bits_per_byte):
            self.validate()
        self.tell(
            events.RunStopped(step=replica.step, reason="interrupted" if stopped else "finished")
        )
        return TrainResult(
            run=self.directory.name,
            steps=replica.step,
            loss=self.loss,
            validation_bits_per_byte=self.bits_per_byte,
            tokens_per_second=speed,
            seconds=self.seconds,
            checkpoint=str(self.checkpoint),
            stopped=stopped,
        )


def train(
    config: Config,
    *,
    run: str | None = None,
    on_event: Callable[[Any], None] = lambda _: None,
    report: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    root: Path = Path("runs"),
) -> TrainResult:
    """Train a model on this machine, or take up a run where it was.

    Args:
        config: all settings; see `peerformer.settings.resolve`.
        run: the run's name; None takes up the newest unfinished run of these settings.
        on_event: called with every record of the journal as it happens.
        report: called with lines for a person.
        should_stop: asked after every step; if true, the run is saved and ends.
        root: where runs are kept.

    Raises:
        ConfigError, DataError, CheckpointError, DivergedError.
    """
    torch.set_num_threads(config.training.threads or torch.get_num_threads())
    directory = open_run(run, config, root=root)
    with directory.locked(), Journal(directory.journal, lambda: datetime.now(UTC)) as journal:
        training = prepare_training(config, directory, report)
        quiet = (events.StepDone,)

        def tell(event: events.Event) -> None:
            on_event(event if isinstance(event, quiet) else journal.append(event))

        training.tell = tell
        training.resume()
        model = training.replica.model
        assert isinstance(model, Transformer)
        dtype = training.replica.autocast_dtype
        tell(
            events.RunStarted(
                run=directory.name,
                step=training.replica.step,
                size=config.size,
                parameters=count_parameters(model.config),
                device="cpu",
                dtype="bfloat16" if dtype is torch.bfloat16 else "float32",
                seed=config.training.seed,
            )
        )
        return training.run(should_stop)


def prepare_training(
    config: Config, directory: RunDirectory, report: Callable[[str], None]
) -> Training:
    """Prepare text, model and optimizer of a run."""
    prepared = prepare(config.data, directory.path / "data", report=report)
    shape = replace(config.model, vocab_size=prepared.tokenizer.vocab_size)
    model = Transformer(shape)
    initialise(model, config.training.seed)
    replica = Replica(
        model,
        build_optimizer(model, config.optimizer),
        clip_norm=config.optimizer.clip_norm,
        autocast_dtype=autocast_dtype(config.training.dtype),
    )
    length = config.training.sequence_length
    return Training(
        config=config,
        directory=directory,
        prepared=prepared,
        replica=replica,
        batches=Batches(prepared.train, length),
        held_out=Batches(prepared.validation, length),
        tell=lambda _: None,
    )
