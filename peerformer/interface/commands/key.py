"""`peerformer key`: make, show, back up and restore the key that a peer is."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from peerformer.errors import ConfigError
from peerformer.interface import passphrase
from peerformer.interface.passphrase import PassphraseFile
from peerformer.node.directory import PeerDirectory
from peerformer.node.journal import holds_store_of, mark_store_lost, take_mark_back
from peerformer.node.keyring import (
    KEY_SIZE_BYTES,
    load_key,
    peer_id_in,
    read_key_line,
    save_key,
    write_key_line,
)
from peerformer.protocol.identity import name_of

FIRST_RUN = "node-8888"  # where `node` and `join` keep a peer that is given no other place


@Parameter(name="*")
@dataclass(frozen=True)
class Place:
    """Which peer's key."""

    run: Annotated[
        str | None, Parameter(help=f"Its run, under runs/; {FIRST_RUN} if there is no other.")
    ] = None
    peer: Annotated[str | None, Parameter(help="Its name in that run.")] = None

    def directory(self, *, must_exist: bool) -> PeerDirectory:
        """Return where the peer lies.

        Raises:
            ConfigError: if there is none, or which is meant is not said.
        """
        run = Path("runs") / self.run if self.run else _only_run()
        peers = sorted(path.parent.name for path in run.glob("peers/*/key"))
        name = self.peer or (peers[0] if len(peers) == 1 else "me")
        directory = PeerDirectory(run / "peers" / name)
        if must_exist and not directory.key.is_file():
            known = ", ".join(peers)
            raise ConfigError(
                "there is no key here",
                where=str(directory.key),
                why=f"this run has keys of: {known}" if known else None,
                hint=f"--peer {peers[0]}" if peers else "peerformer key new --run NAME",
            )
        return directory


def _only_run() -> Path:
    runs = sorted({path.parents[2] for path in Path("runs").glob("*/peers/*/key")})
    if len(runs) > 1:
        names = ", ".join(run.name for run in runs)
        raise ConfigError("which run is meant?", why=f"there are {names}", hint="--run NAME")
    return runs[0] if runs else Path("runs") / FIRST_RUN


Protect = Annotated[bool, Parameter(negative=(), help="Ask for a passphrase to protect it.")]


def new(
    *, place: Place = Place(), protect: Protect = False, passphrase_file: PassphraseFile = None
) -> None:
    """Make a key for a peer that is to join; `node` and `join` make one themselves otherwise."""
    directory = place.directory(must_exist=False)
    if directory.key.exists():
        peer, _ = peer_id_in(directory.key)
        raise ConfigError(
            f"there is a key already, that of {name_of(peer)}",
            where=str(directory.key),
            hint="--run NEW-NAME for another peer",
        )
    wanted = protect or passphrase.is_given(passphrase_file)
    word = passphrase.new(passphrase_file) if wanted else None
    directory.make()
    save_key(directory.key, os.urandom(KEY_SIZE_BYTES), word)
    _tell(directory.key)


def show(
    *,
    place: Place = Place(),
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Show whose key lies here: name, peer id, file; never the secret, and without a passphrase.

    Args:
        place: Which peer's key.
        json_output: Print one JSON object.
    """
    key = place.directory(must_exist=True).key
    if json_output:
        peer, is_protected = peer_id_in(key)
        found = {"name": name_of(peer), "peer_id": peer.hex(), "protected": is_protected}
        print(json.dumps({**found, "path": str(key)}))
    else:
        _tell(key)


def backup(
    file: Path,
    /,
    *,
    place: Place = Place(),
    protect: Protect = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Copy the key to a new file that only you can read; a protected key stays protected.

    Args:
        file: Where to.
        place: Which peer's key.
        protect: Ask for a passphrase that the copy is protected by.
        passphrase_file: File whose first line protects the copy.
    """
    key = place.directory(must_exist=True).key
    _, is_protected = peer_id_in(key)
    wanted = protect or passphrase.is_given(passphrase_file)
    try:
        if is_protected or not wanted:
            write_key_line(file, read_key_line(key))
        else:
            save_key(file, load_key(key), passphrase.new(passphrase_file))
    except FileExistsError:
        raise ConfigError(
            "there is a file of that name already", where=str(file), hint="choose a new name"
        ) from None
    if not is_protected and not wanted:
        print(
            "not protected: whoever reads this copy is this peer; --protect asks for a passphrase"
        )
    _tell(file)
    print("a key on another disk cannot vote: what it has signed stays in the run it was used in")


def restore(
    file: Path,
    /,
    *,
    place: Place = Place(),
    never_used: Annotated[
        bool, Parameter(negative=(), help="I know that this key has signed nothing in a swarm.")
    ] = False,
) -> None:
    """Put a key back from a copy; without the store of what it signed, it must not vote.

    Args:
        file: The copy.
        place: Which peer it is the key of.
        never_used: Take the operator's word that it has signed nothing yet.
    """
    directory = place.directory(must_exist=False)
    line, (peer, _) = read_key_line(file), peer_id_in(file)
    if directory.key.exists():
        present, _ = peer_id_in(directory.key)
        if present != peer:
            raise ConfigError(
                f"another key is here, that of {name_of(present)}",
                where=str(directory.key),
                why=f"the copy is of {name_of(peer)}, and a key is never replaced",
                hint="--run NEW-NAME, or move that key away yourself",
            )
        print("that key is here already")
    else:
        directory.make()
        write_key_line(directory.key, line)
    _tell(directory.key)
    if holds_store_of(directory.path, peer):
        print("its store of what it has signed is here as well: it goes on where it was")
    elif never_used:
        take_mark_back(directory.path)
        print(
            "taken as new; should it have been used, the first decided round shows it, and stops it"
        )
    else:
        mark_store_lost(directory.path)
        print(
            "warning: the store of what it has signed is not here, so it does not vote or"
            " contribute:\n  it could sign a second time for one slot, and be evicted for it\n"
            f"  try: put protocol.db and epoch of its old run into {directory.path},\n"
            "  or join under a new key: --run NEW-NAME\n"
            "  if it was never used: peerformer key restore FILE --never-used"
        )


def _tell(key: Path) -> None:
    peer, is_protected = peer_id_in(key)
    kept = "protected by a passphrase" if is_protected else "readable by you only"
    print(f"{name_of(peer)}   {peer.hex()}\nin {key}, {kept}")
