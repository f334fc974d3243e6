"""Time the codecs and the rules on seven contributions: `python benchmarks/codec.py [--json]`.

One thread (or `--threads`); each part is timed several times, interleaved: median and worst.
"""

import argparse
import json
import statistics
import sys
import time

import torch

from peerformer.gradients.aggregate import aggregate
from peerformer.gradients.compress import CODECS, decode, encode, read
from peerformer.gradients.rules import Rule

AGGREGATED = "dense-int8"
CONTRIBUTIONS = 7
REPEATS = 5
SEED = 1


def milliseconds_of(size: int) -> dict[str, list[float]]:
    """Return the times of each part; encoding and decoding of one contribution."""
    generator = torch.Generator().manual_seed(SEED)
    common = torch.randn(size, generator=generator) * 1e-3
    residual = torch.zeros(size)
    updates = [common + 2e-3 * torch.randn(size, generator=generator) for _ in range(CONTRIBUTIONS)]
    times: dict[str, list[float]] = {}

    def lap(name: str, start: float, share: int = 1) -> float:
        now = time.perf_counter()
        times.setdefault(name, []).append(1000 * (now - start) / share)
        return now

    for _ in range(REPEATS):
        for codec in CODECS:
            now = time.perf_counter()
            blobs = [encode(u, residual, codec=codec, feedback=1.0).blob for u in updates[:2]]
            now = lap(f"encode {codec}", now, len(blobs))
            for blob in blobs:
                decode(blob, size, codec)
            lap(f"decode {codec}", now, len(blobs))
        sent = [encode(u, residual, codec=AGGREGATED, feedback=1.0).blob for u in updates]
        contributions = [read(blob, size, AGGREGATED) for blob in sent]
        now = time.perf_counter()
        for rule in ("robust", "mean"):
            aggregate(contributions, rule=Rule.named(rule), seed=b"seed", recent_norms=())
            now = lap(f"{rule}, all {CONTRIBUTIONS}", now)
    return times


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for size in options.sizes:
        for part, times in milliseconds_of(size).items():
            median = round(statistics.median(times), 2)
            result = {"parameters": size, "part": part, "median_ms": median}
            results.append(result | {"worst_ms": round(max(times), 2)})
    if options.json:
        json.dump({"seed": SEED, "repeats": REPEATS, "results": results}, sys.stdout, indent=1)
        return
    for row in results:
        line = "{parameters:>10,}  {part:18} median {median_ms:8.2f} ms  worst {worst_ms:8.2f} ms\n"
        sys.stdout.write(line.format(**row))


if __name__ == "__main__":
    main()
