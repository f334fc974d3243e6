"""Time what a round does with contributions: `python benchmarks/aggregate.py [--json]`.

Encoding and decoding one, and aggregating several by the default rule: from their bytes, and, where
memory allows, from decoded ones as the plain way. Processor seconds of all threads stand beside the
seconds that passed: on a machine with other work they say what a quiet one would need. Extra memory
is the highest that the process reached above what it held, its contributions included. Each case
runs in a process of its own, so that none is given memory that another has used. Linux only.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from peerformer.gradients.aggregate import aggregate
from peerformer.gradients.compress import check, decode, encode, read
from peerformer.gradients.contribution import Contribution
from peerformer.gradients.rules import Rule

ROUND_TRIPS = (("sparse-2bit", 124_000_000), ("dense-int8", 124_000_000))
AGGREGATIONS = (
    ("sparse-2bit", 124_000_000, 16),
    ("sparse-2bit", 12_400_000, 16),
    ("dense-int8", 5_000_000, 7),
)
DECODED_MAX = 1 << 28  # values in all: more would take more memory than a small machine has
SEED = 1


def update_of(size: int, index: int) -> torch.Tensor:
    """Return an update: what all have in common, and twice as much noise."""
    common = torch.randn(size, generator=torch.Generator().manual_seed(SEED)) * 1e-3
    noise = torch.randn(size, generator=torch.Generator().manual_seed(SEED + 1 + index))
    return common.add_(noise, alpha=2e-3)


def timed(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return seconds passed and of processors, median and best, and the extra memory."""
    passed, used, extra = [], [], 0
    for _ in range(repeats):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far
        held, start, start_used = memory("VmRSS"), time.perf_counter(), time.process_time()
        work()
        passed.append(time.perf_counter() - start)
        used.append(time.process_time() - start_used)
        extra = max(extra, memory("VmHWM") - held)
    return {
        "seconds": round(statistics.median(passed), 3),
        "seconds_best": round(min(passed), 3),
        "processor_seconds": round(statistics.median(used), 3),
        "processor_seconds_best": round(min(used), 3),
        "extra_megabytes": round(extra / 1e6),
    }


def memory(name: str) -> int:
    """Return a line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def round_trip(codec: str, size: int, threads: int, repeats: int) -> list[dict[str, object]]:
    """Encode, check and decode one contribution."""
    torch.set_num_threads(threads)
    update, residual = update_of(size, 0), torch.zeros(size)
    blob = encode(update, residual, codec=codec, feedback=1.0).blob
    parts: dict[str, Callable[[], object]] = {
        "encode": lambda: encode(update, residual, codec=codec, feedback=1.0),
        "check": lambda: check(blob, size, codec),
        "decode": lambda: decode(blob, size, codec),
    }
    case = {"codec": codec, "parameters": size}
    return [{"part": part, **case, **timed(work, repeats)} for part, work in parts.items()]


def write_contributions(codec: str, size: int, count: int, threads: int, folder: Path) -> None:
    """Encode what peers would send, each into a file."""
    torch.set_num_threads(threads)
    for index in range(count):
        update = update_of(size, index)
        blob = encode(update, torch.zeros(size), codec=codec, feedback=1.0).blob
        (folder / str(index)).write_bytes(blob)


def aggregation(
    codec: str, size: int, folder: Path, threads: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Aggregate the contributions of a folder, from their bytes and decoded."""
    torch.set_num_threads(threads)
    blobs = [path.read_bytes() for path in sorted(folder.iterdir())]

    def whole(read_one: Callable[[bytes], Contribution]) -> Callable[[], object]:
        rule = Rule.named("robust")
        return lambda: aggregate(
            [read_one(blob) for blob in blobs], rule=rule, seed=b"seed", recent_norms=()
        )

    found = {"from bytes": timed(whole(lambda blob: read(blob, size, codec)), repeats)}
    if size * len(blobs) <= DECODED_MAX:
        decoded = whole(lambda blob: Contribution.of(decode(blob, size, codec)))
        found["decoded"] = timed(decoded, repeats)
    return found


def measured(threads: int, repeats: int, scale: float) -> list[dict[str, object]]:
    """Return a row for each part of each case."""
    rows: list[dict[str, object]] = []
    spawn = multiprocessing.get_context("spawn")
    for codec, parameters in ROUND_TRIPS:
        with spawn.Pool(1) as pool:
            rows += pool.apply(round_trip, (codec, int(scale * parameters), threads, repeats))
    for codec, parameters, count in AGGREGATIONS:
        size = int(scale * parameters)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with spawn.Pool(1) as pool:
                pool.apply(write_contributions, (codec, size, count, threads, folder))
            with spawn.Pool(1) as pool:
                found = pool.apply(aggregation, (codec, size, folder, threads, repeats))
        case = {"codec": codec, "parameters": size, "contributions": count}
        for way, times in found.items():
            row = {"part": f"aggregate {way}", **case, **times}
            if "decoded" in found:
                plain = found["decoded"]["processor_seconds"]
                row["ratio_to_decoded"] = round(times["processor_seconds"] / plain, 2)
            rows.append(row)
    return rows


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of parameters")
    options = parser.parse_args()
    found = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "load_before": round(os.getloadavg()[0], 1),
        "repeats": options.repeats,
        "results": measured(options.threads, options.repeats, options.scale),
    }
    if options.json:
        json.dump(found, sys.stdout, indent=1)
        return
    for name, value in found.items():
        if name != "results":
            sys.stdout.write(f"{name} {value}\n")
    for row in found["results"]:
        sys.stdout.write("  ".join(f"{name} {value}" for name, value in row.items()) + "\n")


if __name__ == "__main__":
    main()
