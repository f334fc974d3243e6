"""Memory a rank takes with FSDP2 beside DDP, at 2 and 4 ranks.

Each cell is a launch of its own by torchrun, of the step of `peerformer train` in float32 with
AdamW, with short sequences. *held* is what parameters, gradients and optimizer of a rank take;
*peak* the most that became resident while it made steps, less what was before it had a model: on a
CPU with all that the allocator keeps of what was freed, such as the model before it was divided.

    python benchmarks/sharded_memory.py [--size small] [--steps 4] [--quick]
"""

import argparse
import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from peerformer.cluster.group import Group
from peerformer.cluster.training import this_launch
from peerformer.config import Config
from peerformer.data.batches import Batch
from peerformer.model.transformer import Transformer, count_parameters, initialise
from peerformer.settings import resolve
from peerformer.train.optimizer import build_optimizer, optimizer_tensors
from peerformer.train.ranks import own_part
from peerformer.train.replica import Replica

TOKENS = 32  # a sequence
VOCABULARY = 1_024
SAMPLE_SECONDS = 0.005


def held_bytes(replica: Replica) -> int:
    """Bytes of parameters, gradients and optimizer that this rank holds."""
    parameters = list(replica.model.parameters())
    tensors = [*parameters, *(p.grad for p in parameters if p.grad is not None)]
    tensors += optimizer_tensors(replica.optimizer).values()
    return sum(own_part(tensor).nbytes for tensor in tensors)


def memory_of_steps(group: Group, config: Config, steps: int) -> dict[str, int]:
    """Build a model and make some steps; returns the memory it took, and its parameters."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps what was freed, else
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    process = psutil.Process()
    before = process.memory_info().rss
    model = Transformer(replace(config.model, vocab_size=VOCABULARY))
    initialise(model, 0)
    group.place(model)
    replica = Replica(model, build_optimizer(model, config.optimizer), clip_norm=1.0, ranks=group)
    group.attach(replica)
    tokens_BT = torch.randint(0, VOCABULARY, (1, TOKENS + 1))
    batch = Batch(tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous())
    peak, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=sample)
    watcher.start()
    for _ in range(steps):
        replica.gradients([batch])
        replica.apply(1.0)
    done.set()
    watcher.join()
    return {
        "peak_bytes": peak[0] - before,
        "held_bytes": held_bytes(replica),
        "parameters": count_parameters(model.config),
    }


def rank(size: str, engine: str, steps: int) -> None:
    """Make some steps on this rank; rank 0 prints the largest memory of any."""
    overrides = {"optimizer.name": "adamw", "training.engine": engine, "training.dtype": "float32"}
    config = resolve(size=size, overrides=overrides).config
    first = resolve(size="nano", overrides=overrides).config
    torch.set_num_threads(1)
    launch = this_launch()
    with Group(launch, config, trains=False) as group:
        memory_of_steps(group, first, 1)  # whatever is imported on first use
        found = memory_of_steps(group, config, steps)
        of_all = group.agree("memory", {f"~{name}": value for name, value in found.items()})
        if launch.rank == 0:
            largest = {name: max(it[f"~{name}"] for it in of_all) for name in found}
            print(json.dumps(largest), flush=True)


def main() -> None:
    """Launch each cell, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="the nano model, 2 ranks only")
    parser.add_argument("--engine", help=argparse.SUPPRESS)  # of a rank that this script started
    arguments = parser.parse_args()
    size = "nano" if arguments.quick else arguments.size
    if arguments.engine:
        rank(size, arguments.engine, arguments.steps)
        return
    print(f"{'ranks':<7}{'engine':<8}{'held MB':>9}{'peak MB':>9}{'held bytes a parameter':>24}")
    for ranks in (2,) if arguments.quick else (2, 4):
        for engine in ("ddp", "fsdp"):
            words = ["--standalone", f"--nproc-per-node={ranks}", str(Path(__file__).resolve())]
            words += ["--engine", engine, "--size", size, "--steps", str(arguments.steps)]
            with tempfile.TemporaryDirectory() as folder:
                done = subprocess.run(
                    [sys.executable, "-m", "torch.distributed.run", *words],
                    cwd=folder,
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
            found = json.loads(done.stdout.splitlines()[-1])
            held, peak = found["held_bytes"], found["peak_bytes"]
            per = held / found["parameters"]
            numbers = f"{held / 1e6:>9.0f}{peak / 1e6:>9.0f}{per:>24.1f}"
            print(f"{ranks:<7}{engine:<8}{numbers}", flush=True)


if __name__ == "__main__":
    main()
