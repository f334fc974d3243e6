"""The loop of one process; every other mode is this loop with one line changed.

A step is batch -> gradients -> apply. Batches are random access and the learning rate is a
function of the step, so a run that was killed goes on as if nothing had been: the same losses,
bit for bit, on the same machine with the same threads.
"""

import csv
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from peerformer.train.precision import autocast_dtype, dtype_name
from peerformer.train.replica import Replica
from peerformer.train.run_directory import RunDirectory, open_run
from peerformer.train.schedule import learning_rate_scale

DIVERGED_STEPS = 8  # so many gradients in a row that are not finite will not become so again
SPEED_STEPS = 20  # the speed shown is that of the last so many steps
COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "tokens_per_second")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a training run ended.

    Attributes:
        run: the run's name.
        steps: steps done, over all sessions.
        loss: of the last step, in nats a token.
        validation_bits_per_byte: as last measured; NaN if the run was stopped before that.
        tokens_per_second: of this session, looking and saving left out.
        seconds: wall-clock, over all sessions.
        checkpoint: the newest one's path.
        stopped: it was interrupted before its last step.
    """

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
    loss: float = math.nan
    bits_per_byte: float = math.nan
    checkpoint: Path | None = None
    seconds: float = 0.0
    tokens: int = 0
    step_seconds: float = 0.0  # of this session's steps alone
    recent_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=SPEED_STEPS))

    # --- one step ------------------------------------------------------------------------------

    def step(self) -> events.StepDone:
        """Run one step.

        Raises:
            DivergedError: if the gradients have not been finite for some steps.
        """
        settings, replica, began = self.config.training, self.replica, time.perf_counter()
        scale = learning_rate_scale(
            replica.step,
            steps=settings.steps,
            warmup_steps=settings.warmup_steps,
            final_fraction=settings.final_fraction,
        )
        self.loss = replica.gradients(self._passes(replica.step))
        applied = replica.apply(scale)
        if replica.skipped_in_a_row >= DIVERGED_STEPS:
            raise self._diverged(f"{DIVERGED_STEPS} gradients in a row were not finite")
        tokens = settings.batch_size * settings.sequence_length
        self.tokens += tokens
        self.recent_seconds.append(time.perf_counter() - began)
        self.step_seconds += self.recent_seconds[-1]
        return events.StepDone(
            step=replica.step,
            loss=self.loss,
            learning_rate=scale * self.config.optimizer.learning_rate,
            tokens_per_second=tokens * len(self.recent_seconds) / sum(self.recent_seconds),
            gradient_norm=applied.gradient_norm,
        )

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

    def _diverged(self, why: str) -> DivergedError:
        saved = "no checkpoint was saved" if self.checkpoint is None else "the last one is whole"
        rates = "--set optimizer.learning_rate=… --set optimizer.muon_learning_rate=…"
        return DivergedError(
            f"the training has diverged at step {self.replica.step}: its numbers are not finite",
            where=str(self.checkpoint or self.directory.path),
            why=f"{why}; {saved}",
            hint=f"peerformer train --run {self.directory.name} {rates}   with lower ones",
        )

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
        """Save a checkpoint.

        Raises:
            DivergedError: if a parameter is not finite: what was saved before is better.
        """
        if not self.replica.is_finite():
            raise self._diverged("a parameter is not finite")
        position = {
            "seconds": self.seconds,
            "tokens": self.tokens,
            "loss": _finite(self.loss),
            "validation_bits_per_byte": _finite(self.bits_per_byte),
            "dtype": dtype_name(self.replica.autocast_dtype),
        }
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
        self.loss = _number(position["loss"])
        self.bits_per_byte = _number(position["validation_bits_per_byte"])
        if self.config.training.dtype == "auto":  # a probe may say something else today
            self.replica.autocast_dtype = autocast_dtype(position["dtype"])

    @contextmanager
    def _metrics(self) -> Iterator[Callable[[events.StepDone], object]]:
        """Open metrics.csv; rows of steps that a killed run will make again are dropped."""
        path = self.directory.metrics
        text = path.read_text(errors="replace") if path.exists() else ""
        lines = text.splitlines(keepends=True)[1:]
        kept = [line for line in lines if line.endswith("\n") and self._is_done(line)]
        path.write_text("".join([",".join(COLUMNS) + "\n", *kept]))
        with path.open("a", newline="", buffering=1) as file:
            rows = csv.writer(file, lineterminator="\n")
            yield lambda done: rows.writerow([getattr(done, name) for name in COLUMNS])

    def _is_done(self, line: str) -> bool:
        step = line.split(",")[0]
        return step.isdigit() and int(step) <= self.replica.step

    # --- the loop --------------------------------------------------------------------------------

    def run(self, should_stop: Callable[[], bool]) -> TrainResult:
        """Train to the last step, or until asked to stop after a step."""
        settings, replica = self.config.training, self.replica
        began, first, stopped = time.monotonic() - self.seconds, replica.step, False
        replica.model.train()
        with self._metrics() as write_row:
            while replica.step < settings.steps and not stopped:
                done = self.step()
                self.seconds = time.monotonic() - began
                write_row(done)
                self.tell(done)
                last = replica.step == settings.steps
                stopped = not last and should_stop()
                if not stopped and (last or replica.step % settings.validate_every == 0):
                    self.validate()
                if last or stopped or replica.step % settings.checkpoint_every == 0:
                    self.save()
        if not stopped and math.isnan(self.bits_per_byte):
            self.validate()
        self.tell(
            events.RunStopped(step=replica.step, reason="interrupted" if stopped else "finished")
        )
        trained = (replica.step - first) * settings.batch_size * settings.sequence_length
        return TrainResult(
            run=self.directory.name,
            steps=replica.step,
            loss=self.loss,
            validation_bits_per_byte=self.bits_per_byte,
            tokens_per_second=trained / self.step_seconds if trained else 0.0,
            seconds=self.seconds,
            checkpoint=str(self.checkpoint),
            stopped=stopped,
        )


def _finite(number: float) -> float | None:
    """JSON has no NaN."""
    return number if math.isfinite(number) else None


def _number(stored: float | None) -> float:
    return math.nan if stored is None else float(stored)


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
    if directory.finished is not None:
        report(f"finished    {directory.finished} has these settings; a new run begins")
    with directory.locked(), Journal(directory.journal, lambda: datetime.now(UTC)) as journal:
        directory.record(config)
        training = prepare_training(config, directory, report)

        def tell(event: events.Event) -> None:
            on_event(event if isinstance(event, events.StepDone) else journal.append(event))

        training.tell = tell
        training.resume()
        tell(_started(training))
        try:
            return training.run(should_stop)
        except DivergedError:
            tell(events.RunStopped(step=training.replica.step, reason="diverged"))
            raise


def _started(training: Training) -> events.RunStarted:
    model, config = training.replica.model, training.config
    assert isinstance(model, Transformer)
    return events.RunStarted(
        run=training.directory.name,
        step=training.replica.step,
        size=config.size,
        parameters=count_parameters(model.config),
        device="cpu",
        dtype=dtype_name(training.replica.autocast_dtype),
        seed=config.training.seed,
    )


def prepare_training(
    config: Config, directory: RunDirectory, report: Callable[[str], None]
) -> Training:
    """Prepare text, model and optimizer of a run."""
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        report(line)

    prepared = prepare(config.data, directory.path / "data", report=tell)
    if not told:  # it was there already
        report(f"data        {prepared.description}")
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
