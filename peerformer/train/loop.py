"""The loop of one process; every other mode is this loop with one line changed.

Batches are random access and the learning rate is a function of the step and of what was validated,
so a run that was killed goes on as if nothing had been: the same losses, bit for bit, on the same
machine with the same threads. What a step is, and looking and saving, is in `training.py`.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from peerformer import events
from peerformer.config import Config
from peerformer.data.batches import Batches
from peerformer.data.prepare import prepare
from peerformer.errors import CheckpointError, DivergedError
from peerformer.journal import Journal
from peerformer.model.experts import load_columns
from peerformer.model.transformer import (
    Transformer,
    count_parameters,
    flops_per_token,
)
from peerformer.train.average import Average
from peerformer.train.hardware import (
    compute_settings,
    memory_remedy,
    memory_told,
    probed_flops,
)
from peerformer.train.loss_scale import LossScale
from peerformer.train.metrics import COLUMNS, metrics_file
from peerformer.train.optimizer import build_optimizer
from peerformer.train.precision import autocast_dtype, dtype_name
from peerformer.train.ranks import OneProcess, Ranks
from peerformer.train.replica import Replica
from peerformer.train.run_directory import RunDirectory, open_run
from peerformer.train.start import start_of
from peerformer.train.training import Training


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
        checkpoint: the newest one's path, or the best one's where `training.patience` is set.
        stopped: it was interrupted before its last step.
        stalled: it ended before its last step, since validations were no better any more.
    """

    run: str
    steps: int
    loss: float
    validation_bits_per_byte: float
    tokens_per_second: float
    seconds: float
    checkpoint: str
    stopped: bool
    stalled: bool


def run_training(training: Training, should_stop: Callable[[], bool]) -> TrainResult:
    """Train to the last step, until validations stall, or until asked to stop after a step."""
    settings, replica = training.config.training, training.replica
    began, first, stopped = time.monotonic() - training.position.seconds, replica.step, False
    replica.model.train()
    if replica.step and training.is_time_to_validate and not training.is_validated():
        training.validate()  # where it was stopped before it had looked
    with _metrics(training) as write_row:
        while replica.step < settings.steps and not stopped and not training.has_stalled:
            done = training.step()
            training.position.seconds = time.monotonic() - began
            training.tell(done)
            asked = any(training.ranks.mean(should_stop()))
            stopped = asked and replica.step < settings.steps
            if not stopped:
                training.look()
            write_row(training.row(done))
            if stopped or training.is_worth_saving():
                training.save()
    if not stopped and math.isnan(training.position.bits_per_byte):
        training.validate()
    stalled = not stopped and replica.step < settings.steps
    reason = "interrupted" if stopped else "stalled" if stalled else "finished"
    training.tell(events.RunStopped(step=replica.step, reason=reason))
    best = training.best_checkpoint
    trained = (replica.step - first) * settings.batch_size * settings.sequence_length
    return TrainResult(
        run=training.directory.name,
        steps=replica.step,
        loss=training.position.loss,
        validation_bits_per_byte=training.position.bits_per_byte,
        tokens_per_second=trained / training.pace.seconds if trained else 0.0,
        seconds=training.position.seconds,
        checkpoint=str(best if best is not None and best.is_dir() else training.checkpoint),
        stopped=stopped,
        stalled=stalled,
    )


def _metrics(training: Training) -> AbstractContextManager[Callable[[dict[str, float]], object]]:
    if training.ranks.rank:
        return nullcontext(lambda _: None)  # rank 0 alone writes
    columns = COLUMNS + load_columns(training.config.model)
    return metrics_file(training.directory.metrics, training.replica.step, columns)


def train(
    config: Config,
    *,
    run: str | None = None,
    on_event: Callable[[Any], None] = lambda _: None,
    report: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    root: Path = Path("runs"),
    ranks: Ranks = OneProcess(),
) -> TrainResult:
    """Train a model on this machine, or take up a run where it was.

    Args:
        config: all settings; see `peerformer.settings.resolve`.
        run: the run's name; None takes up the newest unfinished run of these settings.
        on_event: called with every record of the journal as it happens.
        report: called with lines for a person.
        should_stop: asked after every step; if true, the run is saved and ends.
        root: where runs are kept.
        ranks: those that train together, of which this is the first; see `cluster.training`.

    Raises:
        ConfigError, DataError, CheckpointError, MemoryExhaustedError, DivergedError.
    """
    directory = open_run(run, config, root=root)
    if directory.finished is not None:
        report(f"finished    {directory.finished} has these settings; a new run begins")
    with (
        directory.locked(),
        _disk_told(directory),
        Journal(directory.journal, lambda: datetime.now(UTC)) as journal,
        compute_settings(config.training),
    ):
        directory.record(config)
        with memory_told(
            f"the model, {config.size}", "a smaller --size, or half of model.hidden_size"
        ):
            training = prepare_training(config, directory, report, ranks)
            training.resume()

        def tell(event: events.Event) -> None:
            is_kept = not isinstance(event, events.StepDone) or training.is_time_to_validate
            on_event(journal.append(event) if is_kept else event)

        training.tell = tell
        dtype, threads = training.replica.autocast_dtype, torch.get_num_threads()
        given = config.training.peak_gflops * 1e9
        here = given or probed_flops(dtype or torch.float32, threads)
        training.peak_flops = here * ranks.size
        tell(_started(training))
        try:
            with memory_told("a step", memory_remedy(config.training)):
                return run_training(training, should_stop)
        except DivergedError:
            tell(events.RunStopped(step=training.replica.step, reason="diverged"))
            raise


@contextmanager
def _disk_told(directory: RunDirectory) -> Iterator[None]:
    """Tell a full disk as one clear failure; checkpoints are as they were."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            "the run's files cannot be written",
            where=str(directory.path),
            why=error.strerror,
            hint="make room on the disk; the same command goes on from the last checkpoint",
        ) from error


def _started(training: Training) -> events.RunStarted:
    model, config = training.replica.model, training.config
    assert isinstance(model, Transformer)
    return events.RunStarted(
        run=training.directory.name,
        step=training.replica.step,
        size=config.size,
        parameters=count_parameters(model.config),
        vocab_size=model.config.vocab_size,
        device="cpu",
        dtype=dtype_name(training.replica.autocast_dtype),
        seed=config.training.seed,
        threads=torch.get_num_threads(),
        peak_gflops=round(training.peak_flops / 1e9, 1),
    )


def prepare_training(
    config: Config,
    directory: RunDirectory,
    report: Callable[[str], None],
    ranks: Ranks = OneProcess(),
) -> Training:
    """Prepare text, model and optimizer of a run, in the directory that rank 0 was given."""
    told: list[str] = []
    directory = replace(directory, path=Path(ranks.told(str(directory.path))))

    def tell(line: str) -> None:
        told.append(line)
        report(line)

    base = start_of(config, directory.path, report)
    prepared = ranks.in_turn(lambda: prepare(base.data, directory.path / "data", report=tell))
    digests = {"data digest": prepared.train.digest, "held-out digest": prepared.validation.digest}
    ranks.agree("text", digests)
    if not told:  # it was there already
        report(f"data        {prepared.description}")
    model = base.model(prepared.tokenizer.vocab_size)
    ranks.place(model)
    settings, optimizer = config.training, build_optimizer(model, config.optimizer)
    decay = settings.ema_decay
    replica = Replica(
        model,
        optimizer,
        clip_norm=config.optimizer.clip_norm,
        autocast_dtype=autocast_dtype(ranks.told(dtype_name(autocast_dtype(settings.dtype)))),
        loss_scale=LossScale(settings.loss_scale) if settings.dtype == "float16" else None,
        average=Average(optimizer.named, decay) if decay else None,
        ranks=ranks,
    )
    ranks.attach(replica)
    length, passes = settings.sequence_length, 1 if optimizer.sharpness is None else 2
    document_start = prepared.tokenizer.end_of_text_id if config.data.document_masks else None
    return Training(
        config=config,
        directory=directory,
        prepared=prepared,
        replica=replica,
        batches=Batches(prepared.train, length, document_start),
        held_out=Batches(prepared.validation, length, document_start),
        tell=lambda _: None,
        flops_a_token=passes * flops_per_token(model.config, length),
        ranks=ranks,
    )
