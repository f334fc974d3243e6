"""What a launcher started, measured: ranks, devices, the speed of adding numbers up, and advice.

Latency is that of one number, bandwidth that of tens of megabytes, both of the very all-reduce that
training would use. Bandwidth is told as the wire sees it: a ring of n ranks sends 2 (n - 1) / n of
what it adds up. Advice is a function of what was found, in plain words; it names the variable to
set.
"""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import torch.distributed as dist

from peerformer.cluster.group import Group
from peerformer.cluster.launch import Launch
from peerformer.cluster.rendezvous import mpi_communicator
from peerformer.config import Config

BANDWIDTH_BYTES = (1 << 20, 16 << 20, 64 << 20)
ROUNDS = 5
LATENCY_ROUNDS = 30
SLOW_LATENCY_SECONDS = 2e-3  # a step has some, one after the other
INFINIBAND = Path("/sys/class/infiniband")
PINNING = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}


@dataclass(frozen=True, slots=True)
class Found:
    """What one rank sees of its host."""

    rank: int
    host: str
    device: str
    cores: int
    threads: int
    interfaces: tuple[str, ...]  # up, and not the loopback
    infiniband: tuple[str, ...]


def look(launch: Launch) -> Found:
    """Look at this rank's host."""
    up = psutil.net_if_stats()
    families = psutil.net_if_addrs()
    interfaces = tuple(
        name
        for name, state in sorted(up.items())
        if state.isup
        and not name.startswith("lo")
        and any(address.family == socket.AF_INET for address in families.get(name, []))
    )
    device = "CPU"
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        index = 0 if count == 1 else launch.local_rank % count
        device = f"GPU {index}: {torch.cuda.get_device_name(index)}"
    cards = tuple(sorted(path.name for path in INFINIBAND.iterdir())) if INFINIBAND.is_dir() else ()
    return Found(
        launch.rank,
        launch.host,
        device,
        os.cpu_count() or 1,
        torch.get_num_threads(),
        interfaces,
        cards,
    )


def examine(launch: Launch, config: Config) -> list[str]:
    """Return what was found, line by line; on rank 0, and nothing on the others.

    Raises:
        ConfigError, ClusterError, ToldElsewhere: as `Group`.
    """
    found = look(launch)
    lines = [f"launcher    {launch.in_words()}"]
    if launch.is_alone:
        lines += _ranks([found])
        lines.append(f"backends    {', '.join(_backends(launch))}")
        lines.append("next        torchrun --nproc-per-node 2 -m peerformer doctor cluster")
        return lines
    with Group(launch, config, trains=False) as group:
        fields = {f"~{name}": getattr(found, name) for name in found.__slots__}
        all_found = [
            Found(**{name: _tuple(held[f"~{name}"]) for name in Found.__slots__})
            for held in group.agree("what each host has", fields)
        ]
        latency, bandwidths = measure(group)
        backend = group.engine.name
        if dist.is_initialized():
            backend += f" over {'nccl' if group.device.type == 'cuda' else 'gloo'}"
    if launch.rank:
        return []
    lines += _ranks(all_found)
    lines.append(f"engine      {backend}   (here too: {', '.join(_backends(launch))})")
    lines.append(f"latency     {latency * 1e6:.0f} µs to add one number up")
    speeds = [f"{size >> 20} MiB: {speed / 1e9:.2f} GB/s" for size, speed in bandwidths.items()]
    lines.append(f"bandwidth   {', '.join(speeds)}")
    told = advice(launch, all_found, backend, latency, os.environ)
    return lines + [f"advice      {line}" for line in told or ["nothing to change was found"]]


def measure(group: Group) -> tuple[float, dict[int, float]]:
    """Return seconds to add one number up, and bytes a second over the wire by bytes added up."""
    latency = median(_timed(group, torch.ones(1, device=group.device), LATENCY_ROUNDS))
    share = 2 * (group.size - 1) / group.size
    bandwidths = {}
    for size in BANDWIDTH_BYTES:
        values = torch.zeros(size // 4, device=group.device)
        bandwidths[size] = share * size / median(_timed(group, values, ROUNDS))
    return latency, bandwidths


def _timed(group: Group, values: torch.Tensor, rounds: int) -> list[float]:
    seconds = []
    group.watch.meets("measuring")
    for number in range(rounds + 1):
        began = time.perf_counter()
        group.engine.add_up(values)
        if group.device.type == "cuda":
            torch.cuda.synchronize()
        if number:  # the first one sets connections up
            seconds.append(time.perf_counter() - began)
    return seconds


def advice(
    launch: Launch,
    found: list[Found],
    backend: str,
    latency_seconds: float,
    environment: Mapping[str, str],
) -> list[str]:
    """Return what to change, in plain words; nothing if nothing was found."""
    told: list[str] = []
    transport = backend.rpartition(" ")[2]
    variable = PINNING.get(transport)
    many = [it for it in found if len(it.interfaces) > 1]
    if not launch.is_one_host and variable and variable not in environment and many:
        names = ", ".join(many[0].interfaces)
        told.append(
            f"{many[0].host} has several networks ({names}): pin the fast one on all hosts, "
            f"export {variable}={many[0].interfaces[0]}"
        )
    cards = next((it.infiniband for it in found if it.infiniband), ())
    if cards and transport == "gloo":
        told.append(
            f"InfiniBand is there ({', '.join(cards)}) and gloo does not use it: "
            "--set training.engine=mpi with an MPI built for it, or GPUs with nccl"
        )
    if cards and transport == "nccl" and "NCCL_IB_HCA" not in environment:
        told.append(f"choose the InfiniBand cards for NCCL: export NCCL_IB_HCA={','.join(cards)}")
    if transport == "nccl" and latency_seconds > SLOW_LATENCY_SECONDS:
        told.append("NCCL is slow to start: NCCL_DEBUG=INFO shows which path it takes")
    for host in sorted({it.host for it in found}):
        here = [it for it in found if it.host == host]
        threads, cores = sum(it.threads for it in here), here[0].cores
        if all(it.device == "CPU" for it in here) and threads > cores:
            told.append(
                f"{host} has {cores} cores for {threads} threads of {len(here)} ranks: "
                f"--set training.threads={max(1, cores // len(here))}, or fewer ranks"
            )
    if latency_seconds > SLOW_LATENCY_SECONDS:
        told.append(
            f"adding up takes {latency_seconds * 1e3:.1f} ms at least: larger batches, or "
            "training.accumulation, send less often"
        )
    return told


def _ranks(found: list[Found]) -> list[str]:
    return [
        f"rank {it.rank:<6} {it.host}   {it.device}, {it.cores} cores, {it.threads} threads"
        + (f"   {', '.join(it.interfaces)}" if it.interfaces else "")
        for it in found
    ]


def _backends(launch: Launch) -> list[str]:
    names = ["gloo"] if dist.is_gloo_available() else []
    if dist.is_nccl_available() and torch.cuda.is_available():
        names.append("nccl")
    if launch.launcher and mpi_communicator(launch) is not None:
        names.append("mpi")
    return names


def _tuple(value: Any) -> Any:
    """JSON has lists only."""
    return tuple(value) if isinstance(value, list) else value
