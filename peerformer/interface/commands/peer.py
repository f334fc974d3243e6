"""`peerformer peer add | kill | start | pause | resume | state`: orders to the swarm of `up`."""

from typing import Annotated, Any

from cyclopts import Parameter

from peerformer.node.directory import find_swarm
from peerformer.node.orders import request

Run = Annotated[
    str | None, Parameter(name="--run", help="Which swarm; without it, the one used last.")
]


def _ask(run: str | None, message: dict[str, Any]) -> dict[str, Any]:
    return request(find_swarm(run), message)


def add(
    *,
    adversary: Annotated[
        str | None,
        Parameter(help="Let it lie: sign-flip, garbage, false-ok, equivocate, silent."),
    ] = None,
    run: Run = None,
) -> None:
    """Add a peer with a new key to the running swarm; it joins by itself."""
    answer = _ask(run, {"do": "add", "adversary": adversary})
    print(f"{answer['name']} is joining" + (f" as an adversary ({adversary})" if adversary else ""))


def kill(name: str, *, run: Run = None) -> None:
    """Kill a peer without a goodbye; the others go on."""
    _ask(run, {"do": "kill", "name": name})
    print(f"{name} is killed.  Bring it back:  peerformer peer start {name}")


def start(name: str, *, run: Run = None) -> None:
    """Start a killed peer again; it catches up and proves that it holds the same state."""
    _ask(run, {"do": "start", "name": name})
    print(f"{name} is back and catching up.  Watch:  peerformer status")


def pause(name: str, *, run: Run = None) -> None:
    """Let a peer train no more; it votes and serves as before."""
    _ask(run, {"do": "pause", "name": name})
    print(f"{name} trains no more after what is in hand.  Go on:  peerformer peer resume {name}")


def resume(name: str, *, run: Run = None) -> None:
    """Let a paused peer train again."""
    _ask(run, {"do": "resume", "name": name})
    print(f"{name} trains again.  Watch:  peerformer status")


def state(name: str, *, run: Run = None) -> None:
    """Print the whole state of a peer's protocol to a file; no secret is in it."""
    print(_ask(run, {"do": "state", "name": name})["path"])
