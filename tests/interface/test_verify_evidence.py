"""Whoever attested what does not decode is convicted offline, by the evidence and the bytes."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from peerformer import events
from peerformer.gradients.audit import check_bounds
from peerformer.gradients.compress import encoded_size
from peerformer.gradients.dense import BLOCK
from peerformer.gradients.fixed_point import state_size_bytes
from peerformer.interface.cli import main
from peerformer.journal import Journal
from peerformer.model.transformer import Transformer
from peerformer.node.evidence import save_evidence
from peerformer.node.journal import DurableStore
from peerformer.peer import Made
from peerformer.protocol.attestations import Attestation, Judgement
from peerformer.protocol.effects import Applied, Check, Checked
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.identity import hash_of
from peerformer.protocol.light_client import RoundEvidence, show_document
from peerformer.protocol.merkle import state_root
from peerformer.protocol.messages import (
    Eviction,
    FalseHolding,
    sign,
)
from peerformer.settings import resolve
from peerformer.simulate.toy import ToyBench, ToyReplicas, first_state
from peerformer.simulate.world import World
from peerformer.train.recipe import recipe_bytes

SEED, AUTHOR, HOLDER = 39, 5, 6
CONFIG = resolve(
    size="nano",
    overrides={
        "model.hidden_size": 32,
        "model.intermediate_size": 64,
        "model.num_layers": 1,
        "model.num_heads": 2,
        "model.num_kv_heads": 1,
        "model.head_dim": 16,
        "model.vocab_size": 300,
        "data.vocab_size": 300,
    },
).config
CODEC = CONFIG.swarm.codec
PARAMETERS = sum(parameter.numel() for parameter in Transformer(CONFIG.model).parameters())
SIZE = encoded_size(PARAMETERS, CODEC)


def padded(state: bytes) -> bytes:
    """A toy's state at the length of a real one."""
    return state + bytes(state_size_bytes(PARAMETERS) - len(state))


class CodedBench(ToyBench):
    """A toy whose contributions and states have the form of a real recipe's."""

    def train(self, round_number: int, seed: bytes, should_stop: Callable[[], bool]) -> Made:
        levels = hash_of("levels", self.me, self.state, seed, bytes([self.life % 256]))
        quiet = bytes(byte & 0x7F for byte in levels)
        blob = bytes(ceil(PARAMETERS / BLOCK)) + quiet
        return Made(blob + bytes(SIZE - len(blob)), b"", 100)

    def check(self, work: Check, blob: bytes) -> Checked:
        fault = check_bounds(blob, PARAMETERS, CODEC)
        score = None if work.score_seed is None or fault else 10_000
        return Checked(fault, score, malformed=fault is not None)

    def apply(
        self, round_number: int, blobs: list[tuple[bytes, bytes]], seed: bytes
    ) -> Applied | None:
        if round_number != self.round + 1:
            return None
        parts = [part for pair in blobs for part in pair]
        state = padded(hash_of("toy state", self.state, seed, *parts))
        root = state_root(state)
        self.computed[root] = state
        return Applied(root, ())


@dataclass(frozen=True, slots=True)
class CodedReplicas(ToyReplicas):
    """Toys under a genesis whose recipe is a real one."""

    state_size: int = state_size_bytes(PARAMETERS)
    blob_size_max: int = SIZE
    recipe: bytes = recipe_bytes(CONFIG)

    def bench(self, me: bytes, life: int, *, poisons: bool) -> ToyBench:
        return CodedBench(me, poisons=poisons, life=life, state=self.first_state())

    def first_state(self) -> bytes:
        return padded(first_state())


@pytest.fixture(scope="module")
def world() -> World:
    """Seven, of whom one contributes noise and another attests it; both were evicted."""
    print("seed", SEED)
    attacks: dict[int, str | tuple[str, ...]] = {AUTHOR: "garbage", HOLDER: "false-ok"}
    made = World(SEED, 7, attacks=attacks, replicas=CodedReplicas())
    made.start()
    liars = {made.hosts[index].keys.peer_id for index in (AUTHOR, HOLDER)}

    def done() -> bool:
        peer = made.hosts[0].peer
        return peer is not None and set(peer.machine.chain.members.banned) == liars

    assert made.run(seconds=300, until=done)
    return made


def evictions(world: World) -> list[tuple[int, FalseHolding]]:
    """The rounds that evicted, with what convicted."""
    alive = world.hosts[0].peer
    assert alive is not None
    found = [
        (item.header.round, operation.evidence)
        for item in alive.machine.chain.items
        for operation in item.header.operations
        if isinstance(operation, Eviction)
    ]
    assert len(found) == 2 and all(isinstance(evidence, FalseHolding) for _, evidence in found)
    return found  # type: ignore[return-value]


@pytest.fixture
def run(world: World, tmp_path: Path) -> Path:
    """The run of one honest peer, with the evidence that it kept, and the genesis beside it."""
    (tmp_path / "genesis.bin").write_bytes(world.genesis.to_bytes())
    run, host = tmp_path / "run", world.hosts[0]
    directory = run / "peers" / "finch"
    (directory / "evidence").mkdir(parents=True)
    (run / "genesis.bin").write_bytes(world.genesis.to_bytes())
    chain_id = world.genesis.chain_id
    store = DurableStore.open(directory, peer_id=host.keys.peer_id, chain_id=chain_id)
    store.persist(sorted(host.disk.records.items()))
    store.close()
    journal = Journal(directory / "journal.jsonl", lambda: datetime(2030, 1, 1, tzinfo=UTC))
    by_peer = {evidence.attestation.sender.hex(): evidence for _, evidence in evictions(world)}
    for event in host.reports:
        journal.append(event)
        if isinstance(event, events.PeerEvicted):
            evidence = by_peer[event.peer]
            blob = host.blobs.held[evidence.blob_hash]
            save_evidence(directory, event, chain_id, evidence, blob)
    return run


Verify = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Verify:
    """Run `peerformer verify … --json`; returns the exit code and the object."""

    def run(subject: Path, *blobs: Path) -> tuple[int, dict[str, Any]]:
        words = ["verify", str(subject), "--genesis", str(tmp_path / "genesis.bin"), "--json"]
        code = main([*words, *(word for blob in blobs for word in ("--blob", str(blob)))])
        shown = capsys.readouterr()
        assert shown.out and "Traceback" not in shown.err, shown.err
        return code, json.loads(shown.out)

    return run


def kept(run: Path) -> list[Path]:
    """The files of evidence that the peer kept."""
    found = sorted((run / "peers" / "finch" / "evidence").glob("*.json"))
    assert len(found) == 2
    return found


def test_the_evidence_that_a_peer_keeps_convicts_with_the_bytes_beside_it(
    world: World, run: Path, verify: Verify
) -> None:
    liars = {world.hosts[index].keys.peer_id.hex() for index in (AUTHOR, HOLDER)}
    convicted = set()
    for path in kept(run):
        code, shown = verify(path)
        assert code == 1 and "--blob" in shown["fault"]["what"] and not shown["convicted"]
        code, shown = verify(path, path.with_suffix(".blob"))
        assert code == 0, shown["fault"]
        assert shown["checked"] == ["chain", "evidence", "contributions"]
        [one] = shown["convicted"]
        assert one["name"] in path.name and "does not decode" in one["what"]
        convicted.add(one["peer"])
    assert convicted == liars


def test_what_log_prints_convicts_with_the_blobs_it_names(
    world: World, run: Path, verify: Verify, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in {number for number, _ in evictions(world)}:
        capsys.readouterr()
        words = ["log", str(run), "--round", str(number), "--evidence", "--json"]
        assert main(words) == 0
        printed = capsys.readouterr()
        told = [json.loads(line) for line in printed.err.splitlines()]
        blobs = [Path(one["file"]).with_suffix(".blob") for one in told if "file" in one]
        assert blobs
        file = tmp_path / f"evidence-{number}.json"
        file.write_text(printed.out)
        code, shown = verify(file, *blobs)
        assert code == 0 and len(shown["convicted"]) == len(blobs), shown


def test_other_bytes_convict_nobody(
    world: World, run: Path, verify: Verify, tmp_path: Path
) -> None:
    path = kept(run)[0]
    blob = path.with_suffix(".blob").read_bytes()
    other = tmp_path / "other.blob"
    for data in (b"", blob[:-1], blob + b"\0", bytes([blob[0] ^ 1]) + blob[1:]):
        other.write_bytes(data)
        code, shown = verify(path, other)
        assert code == 1 and "none of the given" in shown["fault"]["what"]
    assert verify(path, other, path.with_suffix(".blob"))[0] == 0
    genesis = str(tmp_path / "genesis.bin")
    assert main(["verify", str(path), "--genesis", genesis, "--blob", str(tmp_path)]) == 2


def test_whoever_attested_what_decodes_is_not_convicted(
    world: World, run: Path, verify: Verify, tmp_path: Path
) -> None:
    """An honest voter's attestation, of an honest contribution, and its bytes."""
    alive = world.hosts[0].peer
    assert alive is not None
    header = alive.machine.chain.items[0].header
    accepted = header.contributions[0]
    blob = tmp_path / "good.blob"
    blob.write_bytes(world.hosts[0].blobs.held[accepted.blob_hash])
    judgement = Judgement(accepted.peer, accepted.blob_hash, accepted.size, True, None)
    document = RoundEvidence(
        world.genesis.chain_id,
        1,
        (
            FalseHolding(
                sign(world.hosts[1].keys, world.genesis.chain_id, Attestation(1, (judgement,))),
                accepted.peer,
                accepted.blob_hash,
                accepted.size,
            ),
        ),
    )
    file = tmp_path / "slander.json"
    file.write_text(json.dumps(show_document(document)))
    code, shown = verify(file, blob)
    assert code == 1 and "the contribution decodes" in shown["fault"]["what"]
    file.write_text(json.dumps(show_document(replace(document, round=9))))
    code, shown = verify(file, blob)
    assert code == 1 and "nobody need hold" in shown["fault"]["what"]


def convicts(text: str, genesis: Genesis, blob: bytes) -> str:
    """Whom a false holding convicts, by docs/certificates.md alone; raises if nobody."""
    document = json.loads(text)["round_evidence"]
    [evidence] = (one["false_holding"] for one in document["evidence"])
    signed, author = evidence["attestation"], bytes.fromhex(evidence["author"])
    key, size = evidence["blob_hash"], evidence["size"]
    chain_id, parameters = bytes.fromhex(document["chain_id"]), (genesis.state_size - 136) // 8
    body = bytes.fromhex(signed["body"])
    assert chain_id == genesis.chain_id and signed["kind"] == 1
    message = b"peerformer statement 1" + chain_id + b"\1" + body
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signed["sender"]))
    public.verify(bytes.fromhex(signed["signature"]), message)
    holding = author + bytes.fromhex(key) + size.to_bytes(4, "little") + b"\1"
    judgements, at = [], 10
    for _ in range(int.from_bytes(body[8:10], "little")):
        judgements.append(body[at : at + len(holding)])
        at += len(holding) + (5 if body[at + len(holding)] else 1)
    assert holding in judgements
    assert len(body) == at + 2 + 33 * int.from_bytes(body[at : at + 2], "little")
    assert 0 <= document["round"] - int.from_bytes(body[:8], "little") < 8
    parts = b"".join(len(p).to_bytes(8, "little") + p for p in (chain_id, body[:8], author))
    under = blake3(parts, derive_key_context="peerformer 1 contribution key").digest()
    assert len(blob) == size and blake3(blob, key=under).hexdigest() == key
    blocks = -(-parameters // 256)
    levels = [byte - 256 if byte > 127 else byte for byte in blob[blocks:]]
    loudest = [max(map(abs, levels[i : i + 256])) for i in range(0, len(levels), 256)]
    decodes = (
        len(blob) == 257 * blocks
        and max(blob[:blocks]) <= 16
        and min(levels) > -128
        and all(loud >= 64 or e == 0 for e, loud in zip(blob, loudest, strict=False))
        and not any(levels[parameters:])
    )
    assert not decodes
    return str(signed["sender"])


def test_another_program_that_follows_the_page_reaches_the_same_verdict(
    world: World, run: Path, verify: Verify
) -> None:
    for path in kept(run):
        blob = path.with_suffix(".blob")
        [one] = verify(path, blob)[1]["convicted"]
        assert convicts(path.read_text(), world.genesis, blob.read_bytes()) == one["peer"]


def test_the_tensor_library_is_loaded_for_the_bytes_of_a_contribution_only(
    run: Path, tmp_path: Path
) -> None:
    path = kept(run)[0]
    script = (
        "import sys\nfrom peerformer.interface.cli import main\n"
        "words = ['verify', sys.argv[1], '--genesis', sys.argv[2]]\n"
        "assert main(words) == 1 and 'torch' not in sys.modules\n"
        "assert main([*words, '--blob', sys.argv[3]]) == 0 and 'torch' in sys.modules\n"
    )
    files = [str(path), str(tmp_path / "genesis.bin"), str(path.with_suffix(".blob"))]
    words = [sys.executable, "-c", script, *files]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
