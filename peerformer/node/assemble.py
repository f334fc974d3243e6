"""Building a running peer from its files: key, store, snapshot, replica, machine, node.

What a restart finds on disk is verified before it is used: the store must belong to the key,
every header to the chain, and a snapshot must have the state root that a certified header names.
What does not fit is left aside and fetched from others.
"""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peerformer.adversary import corrupt
from peerformer.bench import STATES_KEPT, Learner, ServedState, TensorBench
from peerformer.config import Config, DataConfig
from peerformer.data.batches import Batches
from peerformer.data.prepare import Prepared, prepare
from peerformer.data.shards import ShardSet
from peerformer.data.sources import parts_of
from peerformer.data.tokenizer import Tokenizer
from peerformer.errors import DataError, IdentityError
from peerformer.gradients.fixed_point import AgreedState
from peerformer.journal import Journal
from peerformer.model.recompute import recompute
from peerformer.model.transformer import Transformer
from peerformer.node import faults
from peerformer.node.blobs import BlobStore
from peerformer.node.directory import PeerDirectory, SwarmDirectory, write_durably
from peerformer.node.hours import Hours
from peerformer.node.journal import DurableStore
from peerformer.node.keyring import load_or_create_key
from peerformer.node.network import join_lan, open_network
from peerformer.node.node import Node
from peerformer.node.reach import Reach
from peerformer.node.reachability import Reachability
from peerformer.node.room import Room
from peerformer.node.syncing import KeptChunks
from peerformer.peer import Participant, Peer
from peerformer.protocol.checkpoint import HEADER_PREFIX
from peerformer.protocol.codec import MalformedError, decode
from peerformer.protocol.effects import Report
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.machine import Machine
from peerformer.protocol.membership import GUEST, VOTER
from peerformer.protocol.merkle import chunk_key, state_root
from peerformer.protocol.messages import Certified
from peerformer.train.agreed import AgreedReplica, initial_state
from peerformer.train.evaluate import evaluate
from peerformer.train.privacy import check_accountant
from peerformer.train.recipe import recipe_config
from peerformer.train.replica import Replica

SNAPSHOTS_KEPT = 2
STATES_SERVED_MAX = 8
IN_USE_SECONDS = 20.0  # a state that somebody was fetching so lately is kept for it
BLOB_BYTES_MAX = 1 << 30
JOURNAL_BYTES_MAX = 8 << 20  # of one file of a journal, tens of thousands of events
VALIDATION_SEQUENCES = 16  # after every round: a glance, not a verdict
Validated = Callable[[int, float, float, str], None]  # round, loss, bits per byte, source or ""


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """What one peer of a swarm is told when it starts."""

    host: str | tuple[str, ...] = "127.0.0.1"  # several: all at one port
    port: int = 0
    threads: int = 0
    guest: bool = False  # contributes without a vote
    data: DataConfig | None = None  # this peer's own text; none: the swarm directory's
    attack: str | None = None
    attack_from_round: int = 0
    validates: bool = True  # measures bits per byte after each round
    attach: Callable[[Replica, Config], None] | None = None  # to ranks that share its steps
    reach: Reach = Reach()
    hours: Hours | None = None  # in which to train; none: at all
    stays: bool = False  # a member, when it is told to stop
    watch: Callable[[bytes, bytes], None] | None = None  # sees who sent which frame
    learner: Learner | None = None  # what trains in the text's and the model's place
    seed: bytes | None = field(default=None, repr=False)  # the key, if it was opened already


def wall_clock() -> datetime:
    """Return the time for journals."""
    return datetime.now(UTC)


@dataclass(slots=True)
class Assembled:
    """A node with the parts that others look at."""

    node: Node
    bench: TensorBench[Learner]
    tokenizer: Tokenizer | None  # none where a module of the user's own is trained
    genesis: Genesis
    address: str
    config: Config
    reachability: Reachability


@dataclass(frozen=True, slots=True)
class Validation:
    """How good the agreed model is on the held-out text."""

    replica: AgreedReplica
    tokenizer: Tokenizer
    on_validated: Validated
    sources: list[tuple[str, Batches]]  # each of the held-out text's, by itself

    def measure(self) -> None:
        """On the worker's thread: bits per byte of the agreed model on the held-out set."""
        found = evaluate(
            self.replica.agreed_model(),
            self.replica.held_out,
            sequences=VALIDATION_SEQUENCES,
            byte_lengths_V=self.tokenizer.byte_lengths_V(),
        )
        self.on_validated(self.replica.round, found.loss_nats_per_token, found.bits_per_byte, "")
        for name, text in self.sources:
            part = evaluate(
                self.replica.agreed_model(),
                text,
                sequences=max(1, VALIDATION_SEQUENCES // len(self.sources)),
                byte_lengths_V=self.tokenizer.byte_lengths_V(),
            )
            loss, bits = part.loss_nats_per_token, part.bits_per_byte
            self.on_validated(self.replica.round, loss, bits, name)


@dataclass(frozen=True, slots=True)
class Keeper:
    """What happens to each state that became agreed: saved, served, measured."""

    directory: PeerDirectory
    learner: Learner
    states: "StateServer"
    loop: asyncio.AbstractEventLoop
    validation: Validation | None
    room: Room

    def on_state(self, served: ServedState) -> None:
        """On the worker's thread: save a state that became agreed, then serve its chunks."""
        path = self.directory.states / f"{served.round:012d}.state"
        self.room.write(lambda: write_durably(path, served.data))
        _prune(self.directory.states)
        self.room.write(lambda: self.learner.save_local(self.directory.local))
        self.loop.call_soon_threadsafe(self.states.serve, served)
        if self.validation is not None:
            self.validation.measure()


async def assemble(
    swarm: SwarmDirectory, directory: PeerDirectory, options: PeerOptions, **told: Any
) -> Assembled:
    """Build a peer and let it listen; it does nothing before its `start` command.

    What it tells is told to `told`; see `_assemble`. If it fails, the store is free again.

    Raises:
        SwarmError, IdentityError, DataError: if a file cannot be used or a port is taken.
    """
    with ExitStack() as opened:
        assembled = await _assemble(swarm, directory, options, opened, **told)
        opened.pop_all()
    return assembled


async def _assemble(
    swarm: SwarmDirectory,
    directory: PeerDirectory,
    options: PeerOptions,
    opened: ExitStack,
    *,
    on_report: Callable[[Report], None] = lambda _: None,
    on_trained: Callable[[int, float, int], None] = lambda *_: None,
    on_validated: Validated = lambda *_: None,
    give_way: Callable[[], None] = lambda: None,
) -> Assembled:
    directory.make()
    seed = options.seed or load_or_create_key(directory.key)
    genesis = swarm.genesis()
    chain_id, me = genesis.chain_id, KeyPair.from_seed(seed).peer_id
    store = DurableStore.open(
        directory.path, peer_id=me, chain_id=chain_id, fault=faults.reach_in_store
    )
    opened.callback(store.close)
    records = store.load()
    replica, tokenizer = options.learner, None
    if replica is None:
        replica = _replica(swarm, genesis, options)
        tokenizer = Tokenizer.from_bytes(swarm.tokenizer.read_bytes())
    state_round = _load_snapshot(swarm, directory, genesis, records, replica)
    replica.load_local(directory.local)
    loop = asyncio.get_running_loop()
    room = Room()
    blobs = BlobStore(directory.blobs, bytes_max=BLOB_BYTES_MAX, room=room)
    bench, states = TensorBench[Learner](replica, on_trained=on_trained), StateServer(blobs)
    nodes: list[Node] = []  # filled in below
    place = (options.host, options.port)
    network = await open_network(seed, place, options.reach, blobs, lambda: nodes[0])
    addresses = network.addresses()
    machine = _machine(genesis, seed, addresses, records, state_round, directory, options)
    validation = None
    if options.validates and isinstance(replica, AgreedReplica) and tokenizer is not None:
        validation = Validation(replica, tokenizer, on_validated, _sources(replica))
    bench.on_state = Keeper(directory, replica, states, loop, validation, room).on_state
    if state_round >= 0:
        states.serve(ServedState.of(state_round, replica.state))
    node = Node(
        _participant(Peer(machine, bench, blobs), options),
        transport=network.transport,
        store=store,
        blobs=blobs,
        journal=Journal(directory.journal, wall_clock, JOURNAL_BYTES_MAX),
        room=room,
        threads=options.threads or os.cpu_count() or 1,
        on_report=on_report,
        give_way=give_way,
        on_frame=options.watch,
    )
    if isinstance(replica, AgreedReplica):
        replica.between_layers = node.worker.between_layers
    node.kept_chunks = KeptChunks(directory.path / "fetching", room)
    serve_files(blobs, swarm, genesis)
    nodes.append(node)
    node.spawn(network.run())
    if options.reach.lan:
        await join_lan(node, network, genesis)
    if validation is not None and state_round == 0:
        node.worker.submit(validation.measure)
    place_told = next(iter(addresses), "")
    return Assembled(node, bench, tokenizer, genesis, place_told, replica.config, network)


def _participant(peer: Peer, options: PeerOptions) -> Participant:
    """Return the peer, or one that lies."""
    if options.attack is None:
        return peer
    return corrupt(peer, options.attack, from_round=options.attack_from_round)


def _machine(
    genesis: Genesis,
    seed: bytes,
    addresses: tuple[str, ...],
    records: dict[str, bytes],
    state_round: int,
    directory: PeerDirectory,
    options: PeerOptions,
) -> Machine:
    try:
        return Machine(
            genesis,
            seed,
            addresses=addresses,
            records=records,
            state_round=state_round,
            role=GUEST if options.guest else VOTER,
            now=wall_clock().timestamp(),
        )
    except MalformedError as error:
        raise IdentityError(
            "the protocol store of this peer is damaged",
            where=str(directory.path),
            why=str(error),
            hint="move this peer's directory away and join again under a new key",
        ) from error


def _replica(swarm: SwarmDirectory, genesis: Genesis, options: PeerOptions) -> AgreedReplica:
    config = recipe_config(genesis.recipe, threads=options.threads, data=options.data)
    limits = genesis.limits  # what all agree on
    agreed = replace(config.swarm, staleness=limits.staleness, audits=limits.audit_permille / 1_000)
    config = replace(config, swarm=agreed)
    if agreed.privacy_noise:
        check_accountant()
    prepared = own_text(swarm, config.data if options.data else None)
    if agreed.audits and prepared.digest != agreed.text_digest:
        raise DataError(
            "this machine's text is another than the one that all of this swarm train on",
            where=options.data.path if options.data else None,
            why="peers repeat each other's training here, and can only do so on the same text",
            hint="give the text of the founders with --data, unchanged",
        )
    held_out = ShardSet.from_bytes(swarm.validation.read_bytes())
    length = config.training.sequence_length
    model, scorer = Transformer(config.model), Transformer(config.model)
    recompute(model, config.training.checkpoint_activations)
    state = initial_state(model)  # stands in until a snapshot is installed or fetched
    made = AgreedReplica(
        config, model, scorer, state, Batches(prepared, length), Batches(held_out, length)
    )
    if options.attach is not None:
        options.attach(made.replica, made.config)
    return made


def _sources(replica: AgreedReplica) -> list[tuple[str, Batches]]:
    """Return the held-out text of each source that has enough of it for a sequence."""
    length = replica.config.training.sequence_length
    parts = parts_of(replica.held_out.shards, replica.config.swarm.sources)
    return [(name, Batches(part, length)) for name, part in parts if part.num_tokens > length]


def own_text(swarm: SwarmDirectory, data: DataConfig | None) -> ShardSet:
    """Return this machine's tokens: what was prepared at the founding, or a peer's own text."""
    from peerformer.data.shards import open_shards

    prepared = swarm.path / "data" / "train"
    if data is None and prepared.is_dir():
        return open_shards(prepared, verify=False)
    settings = replace(data or DataConfig(), tokenizer=str(swarm.tokenizer))
    made: Prepared = prepare(settings, swarm.path / "own-data")
    return made.train


def _load_snapshot(
    swarm: SwarmDirectory,
    directory: PeerDirectory,
    genesis: Genesis,
    records: dict[str, bytes],
    replica: Learner,
) -> int:
    """Install the newest snapshot that a certified header vouches for; returns its round."""
    roots = {0: genesis.state_root}
    for key, data in records.items():
        if key.startswith(HEADER_PREFIX):
            header = decode(Certified, data).header
            roots[header.round] = header.state_root
    candidates = [*sorted(directory.states.glob("*.state"), reverse=True), swarm.first_state]
    for path in candidates:
        number = int(path.stem) if path.parent == directory.states else 0
        if number not in roots or not path.exists():
            continue
        data = path.read_bytes()
        if len(data) == genesis.state_size and state_root(data) == roots[number]:
            state = AgreedState.from_bytes(data, replica.layout.size)
            replica.move_to(number, state, accepted=None)
            return number
    return -1


def _prune(states: Path) -> None:
    for path in sorted(states.glob("*.state"), reverse=True)[SNAPSHOTS_KEPT:]:
        path.unlink(missing_ok=True)


@dataclass(slots=True)
class StateServer:
    """Serves the chunks of the states of the last few rounds, each with its proof."""

    blobs: BlobStore
    served: dict[bytes, ServedState] = field(default_factory=dict)
    read_at: dict[bytes, float] = field(default_factory=dict)  # root -> monotonic seconds

    def serve(self, state: ServedState) -> None:
        """Serve one more state, and no longer those that are old and that nobody fetches."""
        for root, old in list(self.served.items()):
            in_use = time.monotonic() - self.read_at.get(root, 0.0) < IN_USE_SECONDS
            crowded = len(self.served) >= STATES_SERVED_MAX
            if old.round <= state.round - STATES_KEPT and (crowded or not in_use):
                del self.served[root]
                self.read_at.pop(root, None)
                for index in range(old.chunk_count):
                    self.blobs.discard(chunk_key(root, index))
        self.served[state.tree.root] = state
        for index in range(state.chunk_count):

            def read(start: int, length: int, index: int = index) -> bytes:
                self.read_at[state.tree.root] = time.monotonic()
                return state.chunk(index)[start : start + length]

            key = chunk_key(state.tree.root, index)
            self.blobs.put_view(key, len(state.chunk(index)), read)


def serve_files(blobs: BlobStore, swarm: SwarmDirectory, genesis: Genesis) -> None:
    """Serve what the genesis names, for newcomers."""
    for key, path in (
        (genesis.tokenizer_hash, swarm.tokenizer),
        (genesis.validation_hash, swarm.validation),
    ):
        data = path.read_bytes()

        def read(start: int, length: int, data: bytes = data) -> bytes:
            return data[start : start + length]

        blobs.put_view(key, len(data), read)
