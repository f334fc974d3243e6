"""One run in progress: a step of it, and what is done between steps.

A step is batch -> gradients -> apply. Between steps the run is looked at (validated, sampled) and
saved. A step that would do harm is left out and told; after some in a row whose gradient is not
finite, the run ends with what is good saved and the layer named. When each of these is done is
the loop's affair.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray

from peerformer import events
from peerformer.config import Config
from peerformer.data.batches import Batch, Batches
from peerformer.data.prepare import Prepared
from peerformer.errors import DivergedError
from peerformer.model.experts import expert_load, load_metrics
from peerformer.model.transformer import IGNORED_TARGET, Transformer
from peerformer.train.checkpoint import checkpoint_path, latest, save_checkpoint
from peerformer.train.diagnosis import first_not_finite
from peerformer.train.evaluate import Evaluation, evaluate
from peerformer.train.hardware import keep_threads, peak_memory_bytes
from peerformer.train.metrics import COLUMNS, Pace
from peerformer.train.position import Position
from peerformer.train.precision import autocast_dtype, dtype_name
from peerformer.train.ranks import OneProcess, Ranks, share_of
from peerformer.train.replica import Applied, Replica
from peerformer.train.run_directory import RunDirectory
from peerformer.train.sample import sample_text
from peerformer.train.schedule import learning_rate_scale, plateau_scale, validations_since_best

DIVERGED_STEPS = 8  # so many gradients in a row that are not finite will not become so again


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
    position: Position = field(default_factory=Position)
    pace: Pace = field(default_factory=Pace)  # of this session
    checkpoint: Path | None = None  # the newest one
    ranks: Ranks = OneProcess()
    flops_a_token: float = 0.0
    peak_flops: float = math.nan  # of this machine, a second
    fault: str = ""  # what is not finite, if the last gradient was not
    byte_lengths_V: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        """Count the bytes that each token stands for."""
        self.byte_lengths_V = self.prepared.tokenizer.byte_lengths_V()

    # --- one step ------------------------------------------------------------------------------

    def step(self) -> events.StepDone:
        """Run one step.

        Raises:
            DivergedError: if the gradients have not been finite for some steps.
        """
        settings, replica, began = self.config.training, self.replica, time.perf_counter()
        scale = learning_rate_scale(replica.step, settings)
        if settings.schedule == "plateau":
            scale *= plateau_scale(self.position.losses, settings)
        self.ranks.step(replica.step + 1)
        # For dropout, after a kill too; ranks drop differently, as their sequences differ.
        torch.manual_seed(_step_seed(settings.seed, replica.step) + self.ranks.rank)
        passes = self.passes(replica.step)
        self.position.loss = replica.gradients(passes)
        applied = replica.apply(scale)
        if applied.skipped and not applied.overflowed:
            self._on_skipped(applied, passes)
        tokens = settings.batch_size * settings.sequence_length
        self.position.tokens += tokens
        self.pace.add(time.perf_counter() - began)
        rate = tokens / self.pace.step_seconds
        return events.StepDone(
            step=replica.step,
            loss=self.position.loss,
            learning_rate=scale * self.config.optimizer.learning_rate,
            tokens_per_second=rate,
            gradient_norm=applied.gradient_norm,
            bits_per_byte=self._bits_per_byte(passes),
            flop_utilisation=self.flops_a_token * rate / self.peak_flops,
            memory_bytes=peak_memory_bytes(),
            seconds_left=(settings.steps - replica.step) * self.pace.step_seconds,
            experts=tuple(load_metrics(expert_load(replica.model)).items()),
        )

    def _bits_per_byte(self, passes: Sequence[Batch]) -> float:
        """Return the loss of a step by the bytes that its targets stand for."""
        targets = torch.cat([batch.targets_BT.flatten() for batch in passes]).cpu().numpy()
        learned = targets[targets != IGNORED_TARGET]
        counts = (len(learned), int(self.byte_lengths_V[learned].sum()))
        tokens, size = counts if self.ranks.size == 1 else self.ranks.mean(*counts)
        return self.position.loss * tokens / size / math.log(2) if size else math.nan

    def _on_skipped(self, applied: Applied, passes: Sequence[Batch]) -> None:
        """Tell why a step was left out, and give up after some whose gradient was not finite."""
        replica = self.replica
        why = f"its gradient, {applied.gradient_norm:.3g} long, is far longer than the last ones"
        if not math.isfinite(applied.gradient_norm):
            if replica.skipped_in_a_row == 1:
                found = first_not_finite(replica.model, lambda: replica.gradients(passes))
                replica.optimizer.zero_grad()
                self.fault = found or "the length of the gradient"
            why = f"{self.fault} is not finite"
        self.tell(events.StepSkipped(step=replica.step, why=why))
        if replica.skipped_in_a_row >= DIVERGED_STEPS:
            self._keep_what_is_good()
            raise self._diverged(f"{DIVERGED_STEPS} gradients in a row were not: {why}")

    def _keep_what_is_good(self) -> None:
        """Save parameters that still predict held-out text: the steps left out did not harm."""
        if self.replica.is_finite() and math.isfinite(self._evaluate().loss_nats_per_token):
            self.save()

    def passes(self, step: int) -> list[Batch]:
        """Return the batches of a step, one for each pass."""
        settings = self.config.training
        size = settings.batch_size // settings.accumulation
        return [
            self.batches.batch(
                settings.seed,
                step,
                batch_size=settings.batch_size,
                slots=share_of(self.ranks, range(start, start + size)),
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

    def _evaluate(self) -> Evaluation:
        with self.replica.averaged():
            return evaluate(
                self.replica.model,
                self.held_out,
                sequences=self.config.training.validation_sequences,
                byte_lengths_V=self.byte_lengths_V,
                autocast_dtype=self.replica.autocast_dtype,
                ranks=self.ranks,
            )

    def validate(self) -> None:
        """Measure loss and bits per byte on held-out text."""
        found = self._evaluate()
        self.position.bits_per_byte = found.bits_per_byte
        self.position.validations.append((self.replica.step, found.loss_nats_per_token))
        self.tell(
            events.Validated(
                step=self.replica.step,
                loss=found.loss_nats_per_token,
                bits_per_byte=found.bits_per_byte,
            )
        )
        for layer, load in expert_load(self.replica.model).items():
            self.tell(
                events.ExpertsCounted(
                    step=self.replica.step, layer=layer, shares=load.shares, dropped=load.dropped
                )
            )

    def sample(self) -> None:
        """Let the model go on with the prompt of the settings."""
        model, settings = self.replica.model, self.config.training
        assert isinstance(model, Transformer)
        with self.replica.averaged():
            text = sample_text(model, self.prepared.tokenizer, settings)
        prompt = settings.sample_prompt or ""
        self.tell(events.Sampled(step=self.replica.step, prompt=prompt, text=text))

    @property
    def has_stalled(self) -> bool:
        """Whether validations have been no better for as long as the settings bear."""
        patience = self.config.training.patience
        return 0 < patience <= validations_since_best(self.position.losses)

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint of the best validation where training stops by it, else None."""
        step = self.position.best_step if self.config.training.patience else None
        return None if step is None else checkpoint_path(self.directory.path, step)

    def save(self) -> None:
        """Save a checkpoint.

        Raises:
            DivergedError: if a parameter is not finite: what was saved before is better.
        """
        if not self.replica.is_finite():
            raise self._diverged("a parameter is not finite")
        self.position.threads = torch.get_num_threads()
        dtype = dtype_name(self.replica.autocast_dtype)
        self.checkpoint = self.ranks.save(
            save_checkpoint,
            self.directory.path,
            replica=self.replica,
            tokenizer_bytes=self.prepared.tokenizer.to_bytes(),
            position={**self.position.to_json(), "dtype": dtype},
            keep=self.config.training.keep_checkpoints,
            spared=self.best_checkpoint,
        )
        digest = self.replica.digest()
        path = str(self.checkpoint)
        self.tell(events.CheckpointSaved(step=self.replica.step, path=path, digest=digest))

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one."""
        newest = self.ranks.told(str(latest(self.directory.path) or ""))
        if not newest:
            return
        self.checkpoint = Path(newest)
        stored = self.ranks.load(self.checkpoint, self.replica)
        self.position = Position.from_json(stored)
        if self.config.training.deterministic:
            keep_threads(self.position.threads, self.config.training)
        if self.config.training.dtype == "auto":  # a probe may say something else today
            self.replica.autocast_dtype = autocast_dtype(stored["dtype"])

    def look(self) -> None:
        """Validate and sample, if it is time to."""
        settings = self.config.training
        if self.is_time_to_validate:
            self.validate()
        if settings.sample_prompt is not None and self._is_time(settings.sample_every):
            self.sample()

    @property
    def is_time_to_validate(self) -> bool:
        """Whether the text held out is looked at after this step."""
        return self._is_time(self.config.training.validate_every)

    def _is_time(self, every: int) -> bool:
        return self.replica.step == self.config.training.steps or self.replica.step % every == 0

    def is_validated(self) -> bool:
        """Tell whether the text held out was looked at after the last step."""
        validations = self.position.validations
        return bool(validations) and validations[-1][0] == self.replica.step

    def is_worth_saving(self) -> bool:
        """Tell whether it is time for a checkpoint, or there is a reason for one."""
        settings, step = self.config.training, self.replica.step
        if self.replica.skipped_in_a_row and step < settings.steps:
            return False  # nothing has changed, unless what was good has become bad
        is_best = settings.patience > 0 and self.position.best_step == step
        return is_best or self.has_stalled or self._is_time(settings.checkpoint_every)

    def row(self, done: events.StepDone) -> dict[str, float]:
        """Return what `metrics.csv` says of a step."""
        row = {name: getattr(done, name) for name in COLUMNS if hasattr(done, name)}
        row |= dict(done.experts)
        row |= {"tokens": self.position.tokens, "seconds": round(self.position.seconds, 3)}
        if self.is_validated():
            row["validation_loss"] = self.position.losses[-1]
            row["validation_bits_per_byte"] = self.position.bits_per_byte
        return row


def _step_seed(seed: int, step: int) -> int:
    """Return the seed of the random numbers that a step draws."""
    return int.from_bytes(blake3(f"{seed} {step}".encode()).digest(7), "little")
