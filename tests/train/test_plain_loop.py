"""A hundred steps of ours are a hundred of a plain PyTorch loop around transformers' model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peerformer import events
from peerformer.config import Config
from peerformer.data.batches import Batches
from peerformer.data.prepare import prepare
from peerformer.model.convert import save_model
from peerformer.model.transformer import Transformer, initialise
from peerformer.settings import resolve
from peerformer.train.loop import train

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

STEPS, SEED = 100, 7
SETTINGS = {
    "model.hidden_size": 64, "model.intermediate_size": 128, "model.num_layers": 2,
    "model.num_heads": 4, "model.num_kv_heads": 2, "model.head_dim": 16,
    "model.max_positions": 64, "data.path": "synthetic:1", "data.vocab_size": 300,
    "optimizer.name": "adamw", "optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.1,
    "training.sequence_length": 64, "training.batch_size": 4, "training.steps": STEPS,
    "training.warmup_steps": 10, "training.final_fraction": 1.0, "training.seed": SEED,
    "training.checkpoint_every": STEPS, "training.validate_every": STEPS,
    "training.validation_sequences": 4, "training.dtype": "float32", "training.threads": 1,
}  # fmt: skip


def plain_losses(config: Config, directory: Path) -> list[float]:
    """Nothing of ours but the text, the order in which it is read, and the first weights."""
    prepared = prepare(config.data, directory / "data", report=lambda line: None)
    ours = Transformer(replace(config.model, vocab_size=prepared.tokenizer.vocab_size))
    initialise(ours, SEED)
    save_model(directory, ours, None)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-3, betas=(0.9, 0.95), eps=1e-8,
    )  # fmt: skip
    batches, losses = Batches(prepared.train, 64), []
    for step in range(STEPS):
        batch = batches.batch(SEED, step, batch_size=4)
        logits = model(batch.tokens_BT).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 10)
        optimizer.step()
    return losses


def test_our_loop_gives_the_losses_of_a_plain_one(tmp_path: Path) -> None:
    config = resolve(overrides=SETTINGS).config
    done: list[events.StepDone] = []
    train(
        config, run="ours", root=tmp_path,
        on_event=lambda event: done.append(event) if isinstance(event, events.StepDone) else None,
    )  # fmt: skip
    (tmp_path / "plain").mkdir()
    expected = plain_losses(config, tmp_path / "plain")
    found = [event.loss for event in done]
    assert len(found) == STEPS and expected[-1] < expected[0] - 1
    worst = max(abs(one - other) for one, other in zip(found, expected, strict=True))
    print(f"seed {SEED}, largest difference of {STEPS} losses {worst:.2g}")
    assert worst <= 1e-5
