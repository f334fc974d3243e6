"""`peerformer verify`: does what a peer stored, or a file it handed on, follow from a genesis?

An offline light client. This module finds what is to be checked and tells the verdict.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from peerformer.errors import ConfigError, SwarmError
from peerformer.node.directory import PeerDirectory, SwarmDirectory, find_swarm
from peerformer.node.journal import DATABASE
from peerformer.node.overview import chosen_peer
from peerformer.node.verification import Records, Verdict, verify_file, verify_run
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.identity import name_of

TOLD_SECONDS = 2.0  # between two lines about how far it is


def verify(
    subject: Annotated[
        str,
        Parameter(
            name="RUN_OR_CERTIFICATE",
            help="A swarm's run, or a peer's directory, or a file that `peerformer log` made with "
            "--certificate or --evidence, or that a peer keeps in its folder evidence.",
        ),
    ],
    /,
    *,
    genesis: Annotated[
        Path | None,
        Parameter(help="The genesis, from somebody you trust: nothing else is believed."),
    ] = None,
    blob: Annotated[
        tuple[Path, ...],
        Parameter(
            negative=(),
            help="A contribution that evidence is about: the .blob beside it. May be repeated.",
        ),
    ] = (),
    peer: Annotated[
        str | None, Parameter(help="Check this peer's files; else those with most rounds.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        Parameter(help="ROUND:DIGEST of a header, from somebody you trust; believed as well."),
    ] = None,
    json_output: Annotated[
        bool, Parameter(name="--json", negative=(), help="One JSON object.")
    ] = False,
) -> int:
    """Check a run, a certificate or evidence against a genesis, offline; 0 if it holds, else 1."""
    path = Path(subject)
    try:
        is_file = path.is_file()
    except OSError as error:
        raise ConfigError("this cannot be a path", why=error.strerror) from error
    if peer is not None and (is_file or (path / DATABASE).is_file()):
        raise ConfigError("--peer goes with a swarm's run only", where=str(path))
    if checkpoint is not None and is_file:
        raise ConfigError("--checkpoint goes with a run only", where=str(path))
    if is_file:
        verdict = verify_file(path, _genesis(genesis, None), blob)
    elif blob:
        raise ConfigError("--blob goes with a file of evidence only", where=str(path))
    else:
        swarm, directory = _run(subject, peer)
        around = swarm or SwarmDirectory(directory.path.absolute().parent.parent)
        trusted = _checkpoint(checkpoint)
        verdict = verify_run(swarm, directory, _genesis(genesis, around), _told, trusted)
    if json_output:
        print(json.dumps(_fields(verdict)))
    else:
        _tell(verdict)
    return 1 if verdict.fault else 0


def _checkpoint(text: str | None) -> tuple[int, bytes] | None:
    if text is None:
        return None
    number, _, digest = text.partition(":")
    try:
        if not number.isascii() or not number.isdigit() or len(digest) != 64:
            raise ValueError
        return int(number), bytes.fromhex(digest)
    except ValueError as error:
        raise ConfigError(
            f"--checkpoint cannot read {text!r:.100}",
            hint="--checkpoint ROUND:DIGEST, the digest as 64 hexadecimal digits",
        ) from error


def _genesis(path: Path | None, swarm: SwarmDirectory | None) -> Genesis:
    """Read the genesis that the user trusts; the run's own one is not taken unasked."""
    own = swarm.genesis_file if swarm and swarm.genesis_file.is_file() else None
    if path is None:
        here = f"; the run's own, {own}, came with it and proves little" if own else ""
        raise ConfigError(
            "verifying needs a genesis of independent origin",
            where="--genesis",
            why="it must not come from whoever made what it is to judge" + here,
            hint="--genesis FILE, from another member or from where the swarm was announced",
        )
    try:
        genesis = Genesis.from_bytes(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            "the genesis cannot be read", where=str(path), why=error.strerror
        ) from error
    except MalformedError as error:
        raise ConfigError("this file is no genesis", where=str(path), why=str(error)) from error
    if own is not None and own.samefile(path):
        print(
            "note: this genesis lies in the run that it judges; compare its chain with others: "
            + genesis.chain_id.hex(),
            file=sys.stderr,
        )
    return genesis


def _run(subject: str, peer: str | None) -> tuple[SwarmDirectory | None, PeerDirectory]:
    """Find a run by its path or name, or one peer by its path."""
    path = Path(subject)
    if (path / DATABASE).is_file():
        return None, PeerDirectory(path)
    try:
        swarm = SwarmDirectory(path) if (path / "peers").is_dir() else find_swarm(subject)
    except SwarmError as error:
        raise ConfigError(
            f"{subject!r:.200} is no run of a swarm, no peer's directory and no file",
            where=error.where,
            why=error.why,
        ) from error
    directory = chosen_peer(swarm, peer)
    if not (directory.path / DATABASE).is_file():
        raise ConfigError("this peer has no protocol store", where=str(directory.path))
    return swarm, directory


def _told(records: Records) -> Iterator[tuple[str, bytes]]:
    """Say now and then how far a long chain is checked."""
    told_at = time.monotonic()
    for number, record in enumerate(records):
        if time.monotonic() - told_at >= TOLD_SECONDS:
            told_at = time.monotonic()
            print(f"verifying   round {number} of {len(records)}", file=sys.stderr, flush=True)
        yield record


def _fields(verdict: Verdict) -> dict[str, Any]:
    fault = verdict.fault
    return {
        "holds": fault is None,
        "rounds": verdict.rounds,
        "head": verdict.head.hex() if verdict.head else None,
        "state_root": verdict.state_root.hex() if verdict.state_root else None,
        "members": verdict.members,
        "checked": verdict.checked,
        "fault": {"round": fault.round, "what": fault.what} if fault else None,
        "convicted": [
            {"peer": one.peer.hex(), "name": name_of(one.peer), "what": one.what}
            for one in verdict.convicted
        ],
        "source": str(verdict.source),
    }


def _tell(verdict: Verdict) -> None:
    fault, shown = verdict.fault, _fields(verdict)
    if fault is None:
        print(f"Holds: {verdict.says}")
    else:
        place = "" if fault.round is None else f"round {fault.round}: "
        print(f"Does not hold: {place}{fault.what}.")
    rows = ["source", *(("head", "state_root", "members") if fault is None else ())]
    for name in rows:
        if shown[name] is not None:
            print(f"  {name.replace('_', ' '):<11} {shown[name]}")
    for one in shown["convicted"]:
        print(f"  convicted   {one['name']} ({one['peer']}): {one['what']}")
    print(f"  checked     {', '.join(verdict.checked) or 'nothing holds'}")
