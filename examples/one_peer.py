"""The arguments that all examples of a swarm take alike: a ticket, or none to found a swarm."""

import argparse
import os


def arguments(what: str) -> argparse.Namespace:
    """Return what one peer was told on its command line; `what` is the example's docstring."""
    parser = argparse.ArgumentParser(
        description=what, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ticket", nargs="?", help="of whoever founded; none: found a swarm")
    parser.add_argument("--directory", default=f"runs/example-{os.getpid()}")
    parser.add_argument("--peers", type=int, default=3, help="to wait for before training")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=os.getpid(), help="of this peer's data")
    return parser.parse_args()
