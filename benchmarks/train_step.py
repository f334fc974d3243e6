"""A training step of ours against a plain PyTorch loop and this machine's matrix product.

Same model, settings, batches and optimizer arithmetic, taken in turns A B A B in one run. The
plain loop is what one would write in an afternoon: forward, backward, clip, AdamW. The second
figure is the float32 step of `--size small` as a share of the GEMM peak measured in the same run.

    python benchmarks/train_step.py [--rounds 5] [--steps 6] [--threads 2] [--json]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from peerformer.config import Config
from peerformer.data.batches import Batches
from peerformer.data.prepare import prepare
from peerformer.model.transformer import Transformer, flops_per_token, initialise
from peerformer.settings import resolve
from peerformer.train.optimizer import build_optimizer
from peerformer.train.replica import Replica
from peerformer.train.run_directory import RunDirectory
from peerformer.train.training import Training


def ours(config: Config, directory: Path) -> Training:
    """The loop of `peerformer train`, with AdamW as the plain one."""
    prepared = prepare(config.data, directory / "data")
    model = Transformer(replace(config.model, vocab_size=prepared.tokenizer.vocab_size))
    initialise(model, 0)
    replica = Replica(
        model, build_optimizer(model, config.optimizer), clip_norm=config.optimizer.clip_norm
    )
    length = config.training.sequence_length
    return Training(
        config=config,
        directory=RunDirectory(directory, resumed=False),
        prepared=prepared,
        replica=replica,
        batches=Batches(prepared.train, length),
        held_out=Batches(prepared.validation, length),
        tell=lambda _: None,
    )


def plain(config: Config, training: Training) -> Callable[[int], None]:
    """A step of a plain loop on the same model and batches."""
    shape = training.replica.model.config
    model: nn.Module = Transformer(shape)
    initialise(model, 0)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.optimizer.learning_rate,
        betas=(config.optimizer.beta1, config.optimizer.beta2),
        fused=True,
    )

    def step(number: int) -> None:
        batch = training.batches.batch(0, number, batch_size=config.training.batch_size)
        optimizer.zero_grad(set_to_none=True)
        logits = model(batch.tokens_BT)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        loss.item()

    return step


def rates(config: Config, directory: Path, rounds: int, steps: int) -> dict[str, list[float]]:
    """Tokens a second of both, one value a round, interleaved."""
    training = ours(config, directory)
    theirs = plain(config, training)
    found: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(rounds + 1):
        for name, step in (("ours", lambda _: training.step()), ("plain", theirs)):
            began = time.perf_counter()
            for index in range(steps):
                step(number * steps + index)
            seconds = time.perf_counter() - began
            if number:  # the first round warms up
                tokens = config.training.batch_size * config.training.sequence_length * steps
                found[name].append(tokens / seconds)
    return found


def gemm_peak() -> float:
    """The best float32 matrix product here, in FLOP a second."""
    a, b = torch.randn(2_048, 2_048), torch.randn(2_048, 2_048)
    best = 0.0
    for _ in range(6):
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * 2_048**3 / (time.perf_counter() - began))
    return best


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    common = {"data.path": "synthetic:1", "optimizer.name": "adamw", "training.dtype": "float32"}
    found: dict[str, object] = {"threads": arguments.threads}
    with tempfile.TemporaryDirectory() as directory:
        tiny = resolve(size="tiny", overrides=common).config
        speeds = rates(tiny, Path(directory) / "tiny", arguments.rounds, arguments.steps)
        ratios = [a / b for a, b in zip(speeds["ours"], speeds["plain"], strict=True)]
        found |= {
            "tiny_ours_tokens_per_second": round(statistics.median(speeds["ours"])),
            "tiny_plain_tokens_per_second": round(statistics.median(speeds["plain"])),
            "tiny_ratio_median": round(statistics.median(ratios), 3),
            "tiny_ratio_worst": round(min(ratios), 3),
        }
        peak = gemm_peak()
        small = resolve(size="small", overrides={**common, "training.batch_size": 4}).config
        training = ours(small, Path(directory) / "small")
        training.step()
        times = []
        for _ in range(3):
            began = time.perf_counter()
            training.step()
            times.append(time.perf_counter() - began)
        tokens = small.training.batch_size * small.training.sequence_length
        flops = flops_per_token(training.replica.model.config, small.training.sequence_length)
        speed = flops * tokens / statistics.median(times)
        found |= {
            "gemm_peak_gigaflops": round(peak / 1e9, 1),
            "small_step_gigaflops": round(speed / 1e9, 1),
            "small_share_of_peak": round(speed / peak, 3),
        }
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<30} {value}")


if __name__ == "__main__":
    main()
