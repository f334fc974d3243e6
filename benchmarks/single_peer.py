"""What the swarm costs a peer that is alone: a swarm of one against `train`, same settings.

A real node (signatures, durable store, fixed point, encoding, aggregation) decides rounds of H
steps; the plain loop trains as many steps of the same model on the same text. Both in this
process, in turns, one after the other; the ratio is of tokens a second, waiting and saving
included.

    python benchmarks/single_peer.py [--rounds 6] [--inner-steps 20] [--threads 2] [--json]
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

import torch

from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import SwarmDirectory
from peerformer.node.founding import found
from peerformer.node.keyring import save_key
from peerformer.node.process import Running
from peerformer.settings import resolve
from peerformer.train.loop import prepare_training
from peerformer.train.run_directory import RunDirectory

SEED = b"\x05" * 32


async def swarm_seconds(swarm: SwarmDirectory, rounds: int, threads: int) -> float:
    """Seconds that a swarm of one takes for so many rounds, after its first."""
    directory = swarm.peer("me").make()
    save_key(directory.key, SEED)
    running = Running(swarm, directory, PeerOptions(threads=threads, validates=False))
    await running.start()
    chain = running.peer.machine.chain
    while chain.tip < 1:
        await asyncio.sleep(0.05)
    began = time.perf_counter()
    while chain.tip < 1 + rounds:
        await asyncio.sleep(0.05)
    seconds = time.perf_counter() - began
    running.node.stop("measured")
    await running.run_until_stopped()
    return seconds


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--inner-steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {
        "swarm.peers": 1,
        "swarm.inner_steps": arguments.inner_steps,
        "data.path": "synthetic:1",
        "training.dtype": "float32",
    }
    config = resolve(size="nano", overrides=settings).config
    steps = arguments.rounds * arguments.inner_steps
    ratios = []
    with tempfile.TemporaryDirectory() as directory:
        for repeat in range(arguments.repeats):
            root = Path(directory) / str(repeat)
            swarm = SwarmDirectory(root / "swarm")
            found(swarm, config, [SEED])
            alone = asyncio.run(swarm_seconds(swarm, arguments.rounds, arguments.threads))
            training = prepare_training(config, RunDirectory(root, resumed=False), lambda _: None)
            training.step()
            began = time.perf_counter()
            for _ in range(steps):
                training.step()
            ratios.append((time.perf_counter() - began) / alone)
    ratios.sort()
    result = {
        "inner_steps": arguments.inner_steps,
        "speed_against_train_median": round(ratios[len(ratios) // 2], 3),
        "speed_against_train_worst": round(ratios[0], 3),
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<30} {value}")


if __name__ == "__main__":
    main()
