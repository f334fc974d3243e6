"""A new chain for those who stay, where more voters are gone for good than a quorum can miss.

The genesis of the new chain is a pure function of the old chain up to one certified round and of
the members that stay: whoever gives the same command founds the same chain, byte for byte, without
a word to the others. Its first state is the agreed state of that round, its voters have the anchors
that they had after it, and its name ends in where it comes from. Nothing else goes over: standing,
bans and addresses begin anew, and so do the store of each peer, its optimizer and what error
feedback had kept back. The old directory is only read.

Signatures are bound to a chain id, so a key that votes on both chains can contradict itself on
neither. It knows nothing of tensors: a state is bytes with a root.
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peerformer.errors import ConfigError, DataError, IdentityError, PeerformerError, SwarmError
from peerformer.node.directory import PeerDirectory, SwarmDirectory, write_durably
from peerformer.node.journal import DATABASE, is_in_use
from peerformer.node.keyring import load_or_create_key, save_key
from peerformer.node.overview import chosen_peer
from peerformer.node.staying import chosen_members, not_chosen
from peerformer.node.stored import StoredHeaders, states_of, stored_headers, stored_state
from peerformer.protocol.anchors import Keeper
from peerformer.protocol.chain import Chain
from peerformer.protocol.discovery import AddressBook
from peerformer.protocol.genesis import Founder, Genesis
from peerformer.protocol.identity import KeyPair, name_of
from peerformer.protocol.light_client import LightClient, foreign_fault
from peerformer.protocol.membership import Member, quorum

ORIGIN_DIGITS = 16  # of the old chain's id and of the header's digest: enough to find either
ORIGIN = re.compile(rb" from [0-9a-f]{16}/\d+/[0-9a-f]{16}$")  # old chain, round, header
NAME_SIZE_MAX = 64
RUN_NAME_SIZE_MAX = 200  # a file's name has 255 bytes on most disks, and a part's is longer
ROUNDS_SHOWN = 8
OWN_TEXT = ("data", "own-data")  # under a swarm's directory: this machine's text as tokens


@dataclass(frozen=True, slots=True)
class OldChain:
    """What this machine holds of the chain that cannot go on."""

    swarm: SwarmDirectory
    source: PeerDirectory  # whose store was read
    stored: StoredHeaders
    chain: Chain  # followed to its tip
    states: dict[bytes, Path]  # root -> a snapshot of it
    keys: dict[bytes, tuple[PeerDirectory, bytes]]  # peer id -> its directory here and its seed


@dataclass(frozen=True, slots=True)
class Recovered:
    """A new swarm, founded."""

    swarm: SwarmDirectory
    genesis: Genesis
    chain: Chain  # the old one, up to the round that was left at
    tip: int  # the newest round of the old one that is known here
    peers: tuple[PeerDirectory, ...]  # those of this machine, in the new directory
    addresses: dict[bytes, str]  # where other voters were reached
    could_go_on: bool  # those who stay are a quorum of the old chain


def recover(
    swarm: SwarmDirectory,
    peers: Sequence[PeerDirectory],
    staying: Sequence[str],
    *,
    number: int | None = None,
    to: str | None = None,
) -> Recovered:
    """Found a new swarm beside the old one, with the keys of those peers here that stay.

    Args:
        swarm: the old swarm.
        peers: its peers on this machine; stopped.
        staying: the members that go on, by name or by the first digits of their id.
        number: the round to go on from; None: the newest whose state is on this disk.
        to: the name of the new run; None: the old one's with the round.

    Raises:
        ConfigError: if it cannot be done as asked for; it says who could stay.
        SwarmError, DataError, IdentityError: if a peer runs, or a file cannot be used.
    """
    if to is not None and (
        to in ("", "..") or Path(to).name != to or len(to.encode()) > RUN_NAME_SIZE_MAX
    ):
        raise ConfigError(
            f"--to takes the name of a run, not {to!r:.80}",
            why=f"the new run lies beside the old one, in {swarm.path.parent}",
        )
    old = read_old_chain(swarm, peers)
    chain = _chain_at(old, number)
    if not staying:
        me = next(peer for peer, (directory, _) in old.keys.items() if directory == old.source)
        raise not_chosen(chain, swarm.path, old.source.journal, me)
    voters = chosen_members(chain.members, staying)
    ids = {member.peer for member in voters}
    here = {peer: known for peer, known in old.keys.items() if peer in ids}
    if not here:
        raise ConfigError(
            "none of those who stay has its key here",
            where=", ".join(str(directory.path) for directory, _ in old.keys.values()),
            hint=f"add {' or '.join(name_of(peer) for peer in sorted(old.keys))} to --with",
        )
    genesis = recovered_genesis(chain, voters)
    new = SwarmDirectory(swarm.path.parent / (to or f"{swarm.path.name}-recovered-{chain.tip}"))
    if new.path.exists():
        raise ConfigError(
            "the new run's directory is there already",
            where=str(new.path),
            hint="--to NAME chooses another",
        )
    _refuse_twins(genesis, new.path.parent, here)
    _write(new, old, chain, genesis, list(here.values()))
    return Recovered(
        new,
        genesis,
        chain,
        old.chain.tip,
        tuple(new.peer(directory.name) for directory, _ in here.values()),
        _addresses(old, ids - here.keys()),
        len(ids.intersection(chain.members.voters)) >= quorum(len(chain.members.voters)),
    )


def recovered_genesis(chain: Chain, voters: Iterable[Member]) -> Genesis:
    """Return the genesis of the chain that some members found on another one's newest round."""
    old = chain.genesis
    chain_id, header = (h.hex()[:ORIGIN_DIGITS] for h in (chain.chain_id, chain.head))
    origin = f" from {chain_id}/{chain.tip}/{header}".encode()
    return replace(
        old,
        name=ORIGIN.sub(b"", old.name)[: NAME_SIZE_MAX - len(origin)] + origin,
        state_root=chain.state_root,
        founders=tuple(
            Founder(member.peer, member.chain_anchor)
            for member in sorted(voters, key=lambda member: member.peer)
        ),
    )


# --- the old chain -------------------------------------------------------------------------------


def read_old_chain(swarm: SwarmDirectory, peers: Sequence[PeerDirectory]) -> OldChain:
    """Read and check what stopped peers of a swarm hold.

    Raises:
        SwarmError: if there is no genesis, or one of them runs.
        ConfigError, DataError, IdentityError: if there is no peer, or what it holds does not fit.
    """
    genesis = swarm.genesis()
    peers = [peer for peer in peers if (peer.path / DATABASE).is_file()]
    for peer in peers:
        if is_in_use(peer.path):
            raise SwarmError(
                f"{peer.name} is running",
                where=str(peer.path),
                why="what it decides while this looks on would be lost",
                hint="stop it first: Ctrl-C where it runs, or `quit` in its console",
            )
    if not peers:
        raise ConfigError("no peer of this swarm has run here", where=str(swarm.path))
    source = peers[0] if len(peers) == 1 else chosen_peer(swarm, None)
    stored = stored_headers(source)
    fault = foreign_fault(stored.chain_id, genesis)
    if fault:
        raise DataError("this store is another swarm's", where=str(source.path), why=fault)
    chain = _followed(genesis, stored, source)
    found = [stored_state(path, 0) for peer in peers for path in states_of(peer)]
    if swarm.first_state.is_file():
        found.append(stored_state(swarm.first_state, 0))
    states = {
        state.root: state.path
        for state in found
        if state and state.size_bytes == genesis.state_size
    }
    keys = {}
    for peer in peers:
        seed = _seed_of(peer)
        keys[KeyPair.from_seed(seed).peer_id] = (peer, seed)
    return OldChain(swarm, source, stored, chain, states, keys)


def _seed_of(peer: PeerDirectory) -> bytes:
    if not peer.key.exists():
        raise IdentityError("this peer has no key", where=str(peer.path))
    return load_or_create_key(peer.key)


def _followed(
    genesis: Genesis, stored: StoredHeaders, source: PeerDirectory, tip: int | None = None
) -> Chain:
    client = LightClient(genesis, base=stored.base)  # its own store is believed to begin there
    wanted = None if tip is None else tip - client.chain.base.round
    fault = client.follow(stored.records[:wanted])
    if fault:
        raise DataError(
            "the decided rounds of this peer do not follow from the genesis",
            where=str(source.path),
            why=f"round {fault.round}: {fault.what}",
            hint="recover from another peer's directory",
        )
    return client.chain


def _chain_at(old: OldChain, number: int | None) -> Chain:
    """Return the chain up to the round to go on from: one whose state is here."""
    tip = old.chain.tip
    roots = {old.chain.base.round: old.chain.base.state_root}
    roots |= {item.header.round: item.header.state_root for item in old.chain.items}
    held = [round_ for round_, root in roots.items() if root in old.states]
    if not held:
        raise DataError(
            "no agreed state is on this disk",
            where=str(old.swarm.path),
            hint="recover where one is, and let this peer join the new chain",
        )
    chosen = held[-1] if number is None else number
    if chosen not in held:
        known = ", ".join(str(round_) for round_ in held[-ROUNDS_SHOWN:])
        raise ConfigError(
            f"the agreed state of round {chosen} is not on this disk",
            where=str(old.swarm.path),
            why=f"the newest decided round is {tip}; states are here of {known}",
            hint=f"--round {held[-1]}",
        )
    if chosen == tip:
        return old.chain
    return _followed(old.chain.genesis, old.stored, old.source, chosen)


def _addresses(old: OldChain, ids: set[bytes]) -> dict[bytes, str]:
    """Return where the peer whose store was read met others."""
    book = AddressBook(b"", old.chain.chain_id, bytes(32), frozenset(ids))
    Keeper().restore(book, dict(old.stored.book))
    return {peer: entry.place for peer, entry in book.entries.items() if entry.place}


# --- the new directory ---------------------------------------------------------------------------


def _refuse_twins(genesis: Genesis, runs: Path, keys: Collection[bytes]) -> None:
    """Refuse a second, empty store of one key for one chain: it could sign twice for a slot."""
    for file in sorted(runs.glob("*/genesis.bin")):
        if file.read_bytes() != genesis.to_bytes():
            continue
        for peer in SwarmDirectory(file.parent).peers():
            if KeyPair.from_seed(_seed_of(peer)).peer_id in keys:
                raise ConfigError(
                    "this chain was founded here already, with this key",
                    where=str(peer.path),
                    why="a second, empty store would let the key vote twice in one round",
                    hint=f"go on in {file.parent}",
                )


def _write(
    new: SwarmDirectory,
    old: OldChain,
    chain: Chain,
    genesis: Genesis,
    keys: Sequence[tuple[PeerDirectory, bytes]],
) -> None:
    """Write the new directory, whole or not at all."""
    part = SwarmDirectory(new.path.with_name(f".{new.path.name}.{os.getpid()}.part"))
    try:
        part.path.mkdir(parents=True)
        for name in OWN_TEXT:
            if (old.swarm.path / name).is_dir():
                shutil.copytree(old.swarm.path / name, part.path / name)
        write_durably(part.tokenizer, old.swarm.tokenizer.read_bytes())
        write_durably(part.validation, old.swarm.validation.read_bytes())
        write_durably(part.first_state, old.states[chain.state_root].read_bytes())
        origin = {
            "chain_id": chain.chain_id.hex(),
            "round": chain.tip,
            "header": chain.head.hex(),
            "state_root": chain.state_root.hex(),
        }
        run = {"kind": "swarm", "chain_id": genesis.chain_id.hex(), "recovered_from": origin}
        write_durably(part.path / "run.json", json.dumps(run, indent=1).encode())
        write_durably(part.genesis_file, genesis.to_bytes())
        for directory, seed in keys:
            save_key(part.peer(directory.name).make().key, seed)
        part.path.rename(new.path)
    except (OSError, shutil.Error) as error:
        raise PeerformerError(
            "the new run cannot be written", where=str(new.path), why=str(error)
        ) from error
    finally:
        shutil.rmtree(part.path, ignore_errors=True)
