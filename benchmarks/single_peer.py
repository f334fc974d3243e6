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
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import SwarmDirectory
from peerformer.node.founding import found
from peerformer.node.keyring import save_key
from peerformer.node.process import Running
from peerformer.node.worker import leave_operators_to_the_bench
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


def alone_seconds(root: Path, inner_steps: int, rounds: int, threads: int) -> float:
    """In a process of its own: found a swarm of one and time its rounds."""
    leave_operators_to_the_bench()
    swarm = SwarmDirectory(root / "swarm")
    found(swarm, resolve(size="nano", overrides=settings(inner_steps)).config, [SEED])
    return asyncio.run(swarm_seconds(swarm, rounds, threads))


def plain_seconds(root: Path, inner_steps: int, rounds: int, threads: int) -> float:
    """In a process of its own: time as many steps of `train`."""
    torch.set_num_threads(threads)
    config = resolve(size="nano", overrides=settings(inner_steps)).config
    training = prepare_training(config, RunDirectory(root, resumed=False), lambda _: None)
    training.step()
    began = time.perf_counter()
    for _ in range(rounds * inner_steps):
        training.step()
    return time.perf_counter() - began


def settings(inner_steps: int) -> dict[str, object]:
    """What both train."""
    return {
        "swarm.peers": 1,
        "swarm.inner_steps": inner_steps,
        "data.path": "synthetic:1",
        "training.dtype": "float32",
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--inner-steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as directory:
        for repeat in range(arguments.repeats):
            root = Path(directory) / str(repeat)
            given = (root, arguments.inner_steps, arguments.rounds, arguments.threads)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                alone = process.submit(alone_seconds, *given).result()
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                ratios.append(process.submit(plain_seconds, *given).result() / alone)
    ratios.sort()
    result = {
        "inner_steps": arguments.inner_steps,
        "threads": arguments.threads,
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
