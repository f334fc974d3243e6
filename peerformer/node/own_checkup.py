"""This machine alone: Python, PyTorch, memory, disk, and whether it can listen.

What a swarm needs of memory and disk follows from its genesis; without one, only what there is is
told. The needs are counted from what a peer keeps, and rounded up: they decide on a verdict, not on
a purchase.
"""

import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from peerformer.errors import ConfigError
from peerformer.node.findings import NO, WARNING, Finding, as_bytes
from peerformer.protocol.conduct import ROUNDS_SERVED
from peerformer.protocol.genesis import Genesis

PYTHON_LEAST = (3, 11)
PROGRAM_BYTES = 600_000_000  # Python with PyTorch, before anything is loaded
STATE_BYTES_PER_PARAMETER = 8  # two integers of 32 bits
TRAINING_BYTES_PER_PARAMETER = 20  # weight, gradient, two moments and a residual in float32
SPARE_BYTES = 200_000_000  # of a disk: journal, log, what the system does meanwhile
COPIES_IN_MEMORY = 6  # of a state: the agreed one, three served, one that is made, one fetched
COPIES_ON_DISK = 4  # of a state: two snapshots, the one being written, what is this peer's alone
BLOB_BYTES_MAX = 1 << 30  # as many as a peer keeps


@dataclass(frozen=True, slots=True)
class Needs:
    """What a peer of one swarm takes, in bytes, about."""

    memory_bytes: int
    disk_bytes: int


def needs_of(genesis: Genesis) -> Needs:
    """Return what a peer of a swarm takes of this machine."""
    from peerformer.train.memory import step_memory
    from peerformer.train.recipe import recipe_config

    parameters = genesis.state_size // STATE_BYTES_PER_PARAMETER
    training = TRAINING_BYTES_PER_PARAMETER * parameters
    try:
        config = recipe_config(genesis.recipe, threads=1, data=None)
        step = step_memory(config.model, config.training, config.optimizer, None)
        training = step.peak_bytes or training
    except ConfigError:
        pass  # not a model of ours: what its training takes is its program's to know
    scoring = 4 * parameters
    memory = PROGRAM_BYTES + training + scoring + COPIES_IN_MEMORY * genesis.state_size
    rounds = genesis.limits.contributions_max * ROUNDS_SERVED
    blobs = min(BLOB_BYTES_MAX, rounds * (genesis.blob_size_max + genesis.record_size_max))
    disk = SPARE_BYTES + COPIES_ON_DISK * genesis.state_size + blobs
    return Needs(memory, disk)


def look_at_this_machine(directory: Path, needs: Needs | None = None) -> list[Finding]:
    """Return what this machine has."""
    return [_python(), _torch(), _memory(needs), _disk(directory, needs)]


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < PYTHON_LEAST:
        cure = f"install Python {'.'.join(map(str, PYTHON_LEAST))} or newer"
        return Finding("python", version, NO, cure)
    return Finding("python", f"{version}, {platform.system()} {platform.machine()}")


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("torch", f"it cannot be loaded: {error}", NO, "pip install torch")
    device = "CPU"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name(0)
    elif torch.backends.mps.is_available():
        device = "Apple GPU"
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return Finding("torch", f"{torch.__version__} on {device}, {cores} cores")


def _memory(needs: Needs | None) -> Finding:
    found = psutil.virtual_memory()
    have = f"{as_bytes(found.available)} free of {as_bytes(found.total)}"
    if needs is None:
        return Finding("memory", have)
    measured = f"{have}; this swarm takes about {as_bytes(needs.memory_bytes)}"
    if found.total < needs.memory_bytes:
        return Finding("memory", measured, NO, "a machine with more memory")
    if found.available < needs.memory_bytes:
        return Finding("memory", measured, WARNING, "end other programs first")
    return Finding("memory", measured)


def _disk(directory: Path, needs: Needs | None) -> Finding:
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    have = f"{as_bytes(free)} free at {place}"
    if needs is None:
        return Finding("disk", have)
    measured = f"{have}; this swarm takes up to {as_bytes(needs.disk_bytes)}"
    if free < needs.disk_bytes:
        return Finding("disk", measured, NO, "make room, or start it on a larger disk")
    return Finding("disk", measured)
