"""`peerformer recover`: a new chain from the last certified state, for those who stay."""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from peerformer.errors import ConfigError
from peerformer.node.directory import PeerDirectory, SwarmDirectory, find_swarm
from peerformer.node.journal import DATABASE
from peerformer.node.recovery import Recovered
from peerformer.node.recovery import recover as found_anew
from peerformer.protocol.identity import name_of
from peerformer.protocol.membership import quorum, tolerated_faults

RUNS = Path("runs")
FIRST_PORT = 8_888
NODE = "me"  # the peer of `peerformer node`


def recover(
    run: Annotated[
        str | None,
        Parameter(
            name="RUN_OR_PEER",
            help="A stopped swarm's run, by name or path, or one peer's directory; without it, "
            "the run used last.",
        ),
    ] = None,
    /,
    *,
    staying: Annotated[
        tuple[str, ...],
        Parameter(
            name="--with",
            negative=(),
            help="Who stays: names or ids, with commas between. Without it, those are told who "
            "could.",
        ),
    ] = (),
    number: Annotated[
        int | None,
        Parameter(
            name="--round",
            help="The round to go on from; without it, the newest whose state is on this disk.",
        ),
    ] = None,
    to: Annotated[str | None, Parameter(help="Name of the new run, beside the old one.")] = None,
    json_output: Annotated[
        bool, Parameter(name="--json", negative=(), help="One JSON object.")
    ] = False,
) -> None:
    """Found a new chain for those who stay, from the newest agreed state; nothing is asked."""
    swarm, peers = _subject(run)
    words = [word.strip() for text in staying for word in text.split(",") if word.strip()]
    recovered = found_anew(swarm, peers, words, number=number, to=to)
    shown = _fields(swarm, recovered)
    if json_output:
        print(json.dumps(shown))
    else:
        _tell(shown)


def _subject(run: str | None) -> tuple[SwarmDirectory, list[PeerDirectory]]:
    try:
        if run is not None and (Path(run) / DATABASE).is_file():
            peer = PeerDirectory(Path(run).absolute())
            return SwarmDirectory(peer.path.parent.parent), [peer]
        swarm = find_swarm(run)
    except OSError as error:  # a name that is too long, or a directory that may not be read
        raise ConfigError(f"{run!r:.80} cannot be opened as a run", why=error.strerror) from error
    return swarm, swarm.peers()


def _fields(old: SwarmDirectory, recovered: Recovered) -> dict[str, Any]:
    founders = [founder.peer for founder in recovered.genesis.founders]
    chain = recovered.chain
    return {
        "run": str(recovered.swarm.path),
        "chain_id": recovered.genesis.chain_id.hex(),
        "name": recovered.genesis.name.decode(errors="replace"),
        "recovered_from": {
            "run": str(old.path),
            "chain_id": chain.chain_id.hex(),
            "round": chain.tip,
            "header": chain.head.hex(),
            "state_root": chain.state_root.hex(),
            "newest_round": recovered.tip,
            "could_go_on": recovered.could_go_on,
        },
        "voters": [{"name": name_of(peer), "peer_id": peer.hex()} for peer in founders],
        "quorum": quorum(len(founders)),
        "tolerates": tolerated_faults(len(founders)),
        "peers": [peer.name for peer in recovered.peers],
        "next": _next(old, recovered),
    }


def _next(old: SwarmDirectory, recovered: Recovered) -> str:
    """Return the command that starts those of the new run that are on this machine."""
    path = recovered.swarm.path
    run = path.name if path.absolute().parent == RUNS.absolute() else str(path.absolute())
    if [peer.name for peer in recovered.peers] != [NODE]:
        return f"peerformer up --run {run}"
    status = old.peer(NODE).read_status() or {}
    host, _, port = str(status.get("address") or f"127.0.0.1:{FIRST_PORT}").rpartition(":")
    words = ["peerformer node", f"--run {run}", f"--port {port}"]
    if host not in ("", "127.0.0.1"):
        words.append(f"--host {host.strip('[]')}")
    if recovered.addresses:
        words.append(f"--bootstrap {min(recovered.addresses.values())}")
    return " ".join(words)


def _tell(shown: dict[str, Any]) -> None:
    old, voters, faults = shown["recovered_from"], shown["voters"], shown["tolerates"]
    count = len(voters)
    tolerance = (
        f"tolerates {faults} Byzantine peers ({count} = 3·{faults} + {count - 3 * faults})"
        if faults
        else f"{count} peers tolerate no Byzantine one: that takes at least 4"
    )
    rows = [("old chain", f"{old['chain_id'][:16]}, left after round {old['round']}")]
    if old["newest_round"] != old["round"]:
        rows.append(("", f"round {old['newest_round']} is decided, and not taken up from here"))
    if old["could_go_on"]:
        rows.append(("", "those who stay are a quorum of it: it could have gone on without this"))
    rows += [
        ("state root", old["state_root"]),
        ("new chain", shown["chain_id"]),
        ("", "the same for all who stay, or they do not belong together: compare it;"),
        ("", "if it differs, somebody was behind, or named others: take the oldest --round"),
        ("voters", ", ".join(voter["name"] for voter in voters)),
        ("", f"quorum {shown['quorum']}; {tolerance}"),
        ("here", ", ".join(shown["peers"])),
        ("run", shown["run"]),
        ("not again", f"{old['run']} must not be started again with these peers"),
        ("next", shown["next"]),
    ]
    if shown["peers"] == [NODE]:
        rows.append(("", "with --data as before, if this peer has text of its own"))
    for name, text in rows:
        print(f"{name:<11} {text}")
