"""What a swarm costs each peer as it grows: the table of docs/reliability.md.

    python benchmarks/crowd.py --rounds 5 7 16 64 256 1000

Each size is a process of its own, so that the memory is its own. Prints a Markdown table.
"""

import argparse
import json
import subprocess
import sys


def cost_of(peers: int, rounds: int) -> dict[str, float]:
    """Simulate one swarm in a process of its own."""
    command = [sys.executable, "-m", "peerformer", "simulate", "--json"]
    command += ["--peers", str(peers), "--rounds", str(rounds), "--crowd"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", type=int, nargs="*", default=[7, 16, 64, 256, 1_000])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(
        "| peers | messages | message bytes | contribution bytes | links "
        "| CPU alone | finality | took | memory |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for peers in arguments.peers:
        found = cost_of(peers, arguments.rounds)
        print(
            f"| {peers} | {found['messages']:.0f} | {found['message_bytes'] / 1e6:.2f} MB "
            f"| {found['blob_bytes'] / 1e6:.0f} MB | {found['links']:.0f} "
            f"| {1e3 * found['cpu_seconds_alone']:.0f} ms | {found['finality_seconds']:.1f} s "
            f"| {found['seconds']:.0f} s | {found['peak_memory_bytes'] / 1e6:.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
