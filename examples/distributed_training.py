"""Train on all ranks of whatever launcher started this: torchrun, mpirun, srun, or none.

    python examples/distributed_training.py
    torchrun --nproc-per-node 4 examples/distributed_training.py
    mpirun -np 4 python examples/distributed_training.py

The batch size is that of all ranks together, so each of these makes the same losses.
"""

import argparse
import sys

from peerformer.cluster.training import this_launch, train
from peerformer.errors import PeerformerError, ToldElsewhere
from peerformer.settings import resolve


def main() -> int:
    """Train a small model; the same command again goes on where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="synthetic:1", help="file or folder of text")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--engine", default="auto", choices=("auto", "ddp", "fsdp", "mpi"))
    arguments = parser.parse_args()
    settings = {
        "data.path": arguments.data,
        "training.steps": arguments.steps,
        "training.batch_size": 8,
        "training.engine": arguments.engine,
    }
    config = resolve(size="nano", overrides=settings).config
    try:
        result = train(config, run="distributed", report=print)
    except ToldElsewhere as silent:  # another rank has told what went wrong
        return silent.exit_code
    except PeerformerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if this_launch().rank == 0:
        print(f"{result.steps} steps, {result.validation_bits_per_byte:.3f} bits per byte")
    return 0


if __name__ == "__main__":
    sys.exit(main())
