"""What a swarm decided can be checked by anybody who holds its genesis, and by other code."""

import copy
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from blake3 import blake3

from peerformer.interface.cli import main
from peerformer.node.journal import DATABASE, DurableStore
from peerformer.protocol.codec import decode, encode
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.identity import name_of
from peerformer.protocol.light_client import (
    LightClient,
    RoundCertificate,
    read_document,
)
from peerformer.protocol.membership import quorum
from peerformer.protocol.messages import (
    Certified,
    Eviction,
)
from peerformer.simulate.world import Host, World

SEED, LIAR, ROUNDS = 5, 3, 8


@pytest.fixture(scope="module")
def world() -> World:
    """A swarm of seven that evicted an equivocator and went on."""
    print("seed", SEED)
    made = World(SEED, 7, attacks={LIAR: "equivocate"})
    made.start()
    honest = [host.index for host in made.honest()]
    banned = made.hosts[LIAR].keys.peer_id

    def done() -> bool:
        peers = [made.hosts[index].peer for index in honest]
        chains = [peer.machine.chain for peer in peers if peer is not None]
        return all(c.tip >= ROUNDS and banned in c.members.banned for c in chains)

    assert made.run(seconds=300, until=done)
    return made


def store(host: Host, genesis: Genesis, directory: Path) -> DurableStore:
    """Write what the world's disk holds as a real peer does."""
    (directory / "states").mkdir(parents=True)
    store = DurableStore.open(directory, peer_id=host.keys.peer_id, chain_id=genesis.chain_id)
    store.persist(sorted(host.disk.records.items()))
    number, state = host.snapshot
    (directory / "states" / f"{number:012d}.state").write_bytes(state)
    return store


@pytest.fixture
def peer(world: World, tmp_path: Path) -> Path:
    """The directory of an honest peer, beside the genesis in genesis.bin."""
    (tmp_path / "genesis.bin").write_bytes(world.genesis.to_bytes())
    store(world.hosts[0], world.genesis, tmp_path / "peer").close()
    return tmp_path / "peer"


Verify = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Verify:
    """Run `peerformer verify … --json`; returns the exit code and the object."""

    def run(subject: Path, genesis: Path | None = None) -> tuple[int, dict[str, Any]]:
        words = ["verify", str(subject), "--genesis", str(genesis or tmp_path / "genesis.bin")]
        code = main([*words, "--json"])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, json.loads(shown.out)

    return run


def rewrite(directory: Path, round_number: int, change: Callable[[Certified], Any]) -> None:
    """Change the record of a round in a store."""
    key = f"header/{round_number:012d}"
    connection = sqlite3.connect(directory / DATABASE)
    with connection:
        row = connection.execute("SELECT data FROM records WHERE key = ?", (key,)).fetchone()
        changed = change(decode(Certified, row[0]))
        data = changed if isinstance(changed, bytes) else encode(changed)
        connection.execute("UPDATE records SET data = ? WHERE key = ?", (data, key))
    connection.close()


def flip(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_that_follows_from_the_genesis_holds(
    world: World, peer: Path, verify: Verify
) -> None:
    code, shown = verify(peer)
    alive = world.hosts[0].peer
    assert alive is not None
    chain = alive.machine.chain
    assert code == 0 and shown["holds"] is True and shown["fault"] is None
    assert shown["rounds"] == chain.tip and shown["head"] == chain.head.hex()
    assert shown["state_root"] == chain.state_root.hex()
    assert shown["members"] == len(chain.members.members) == 6
    checks = {"headers", "certificates", "members", "operations", "beacons"}
    assert checks <= set(shown["checked"])
    assert f"state of round {world.hosts[0].snapshot[0]}" in shown["checked"]
    liar = world.hosts[LIAR].keys.peer_id
    assert [one["peer"] for one in shown["convicted"]] == [liar.hex()]
    assert "signed two" in shown["convicted"][0]["what"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda item: flip(encode(item), 10), "certificate of another header"),
        (lambda item: flip(encode(item), -1), "a signature is wrong"),
        (lambda item: encode(item)[:-1], "malformed"),
        (lambda item: b"", "malformed"),
        (
            lambda item: replace(item, certificate=replace(item.certificate, view=9)),
            "a signature is wrong",
        ),
        (
            lambda item: replace(item, certificate=replace(item.certificate, commits=False)),
            "not a commit certificate",
        ),
    ],
)
def test_a_byte_flipped_in_a_round_is_named_with_its_round(
    peer: Path, verify: Verify, change: Callable[[Certified], Any], what: str
) -> None:
    rewrite(peer, 3, change)
    code, shown = verify(peer)
    assert code == 1 and shown["holds"] is False
    assert shown["fault"]["round"] == 3 and what in shown["fault"]["what"]
    assert shown["rounds"] == 2 and "certificates" not in shown["checked"]


def test_too_few_signers_are_named(peer: Path, verify: Verify) -> None:
    def fewer(item: Certified) -> Certified:
        votes = item.certificate
        bits = int.from_bytes(votes.signers, "little")
        assert bits.bit_count() == len(votes.signatures) == quorum(7) == 5
        few = (bits & bits - 1).to_bytes(1, "little")
        certificate = replace(votes, signers=few, signatures=votes.signatures[1:])
        return replace(item, certificate=certificate)

    rewrite(peer, 1, fewer)
    assert verify(peer)[1]["fault"] == {"round": 1, "what": "no quorum"}


def test_a_missing_round_and_a_moved_one_are_named(peer: Path, verify: Verify) -> None:
    connection = sqlite3.connect(peer / DATABASE)
    with connection:
        connection.execute("DELETE FROM records WHERE key = 'header/000000000002'")
    connection.close()
    code, shown = verify(peer)
    assert code == 1 and shown["fault"]["round"] == 2 and "missing" in shown["fault"]["what"]


def test_a_byte_flipped_in_a_state_is_named_with_its_round(peer: Path, verify: Verify) -> None:
    [path] = (peer / "states").iterdir()
    path.write_bytes(flip(path.read_bytes(), 7))
    code, shown = verify(peer)
    assert code == 1 and shown["fault"]["round"] == int(path.stem)
    assert "another root" in shown["fault"]["what"] and "certificates" in shown["checked"]
    path.write_bytes(b"short")
    assert "5 bytes" in verify(peer)[1]["fault"]["what"]
    path.rename(path.with_name("999999999999.state"))
    assert "after the last decided one" in verify(peer)[1]["fault"]["what"]
    path.with_name("999999999999.state").rename(path.with_name("new.state"))
    assert "of no round" in verify(peer)[1]["fault"]["what"]


def test_another_genesis_is_named(peer: Path, verify: Verify, world: World, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(replace(world.genesis, name=b"another").to_bytes())
    code, shown = verify(peer, other)
    assert code == 1 and shown["fault"]["round"] == 0 and shown["rounds"] == 0
    assert world.genesis.chain_id.hex()[:16] in shown["fault"]["what"]
    connection = sqlite3.connect(peer / DATABASE)
    with connection:  # a store that claims to be the other chain's
        claimed = Genesis.from_bytes(other.read_bytes()).chain_id
        connection.execute("UPDATE bound SET chain = ?", (claimed,))
    connection.close()
    code, shown = verify(peer, other)
    assert code == 1 and shown["fault"]["round"] == 1


def test_no_damage_to_a_store_does_worse_than_a_named_fault(peer: Path, verify: Verify) -> None:
    random = Random(SEED)
    database = peer / DATABASE
    whole = database.read_bytes()
    found = 0
    for _ in range(40):
        at = random.randrange(len(whole))
        database.write_bytes(whole[:at] + random.randbytes(16) + whole[at + 16 :])
        code, shown = verify(peer)
        assert code == (0 if shown["holds"] else 1)
        found += code
    assert found > 5
    for junk in (b"", b"no database at all" * 300, whole[: len(whole) // 2]):
        database.write_bytes(junk)
        code, shown = verify(peer)
        assert code == 1 and shown["fault"]["what"], junk[:10]


def test_a_store_that_would_compute_for_ever_is_refused(peer: Path, verify: Verify) -> None:
    connection = sqlite3.connect(peer / DATABASE)
    with connection:
        connection.execute("DROP TABLE records")
        connection.execute(
            "CREATE VIEW records AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
            " SELECT 'header/' || i AS key, 'x' AS data FROM n"
        )
    connection.close()
    code, shown = verify(peer)
    assert code == 1 and "no table of records" in shown["fault"]["what"]


def test_a_running_peer_is_read_without_being_disturbed(
    world: World, verify: Verify, tmp_path: Path
) -> None:
    (tmp_path / "genesis.bin").write_bytes(world.genesis.to_bytes())
    directory = tmp_path / "peer"
    opened = store(world.hosts[0], world.genesis, directory)
    before = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    assert (directory / f"{DATABASE}-wal").stat().st_size > 0  # the newest rounds are only there
    assert verify(directory)[0] == 0
    after = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    assert before == after
    opened.persist([("round/view", b"1")])
    assert verify(directory)[1]["rounds"] >= ROUNDS
    opened.close()


def test_the_genesis_must_be_named_and_the_runs_own_is_only_a_hint(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    store(world.hosts[0], world.genesis, run / "peers" / "finch").close()
    own = run / "genesis.bin"
    own.write_bytes(world.genesis.to_bytes())
    for subject in (run, run / "peers" / "finch"):
        assert main(["verify", str(subject)]) == 2
        shown = capsys.readouterr()
        assert "independent origin" in shown.err and str(own) in shown.err and not shown.out
        assert main(["verify", str(subject), "--genesis", str(own)]) == 0
        shown = capsys.readouterr()
        assert "lies in the run" in shown.err and shown.out.startswith("Holds: ")
    copied = tmp_path / "copied.bin"
    copied.write_bytes(own.read_bytes())
    assert main(["verify", str(run), "--genesis", str(copied), "--peer", "finch"]) == 0
    assert capsys.readouterr().err == ""


def test_wrong_usage_exits_2_and_says_what_is_wrong(
    peer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    genesis, junk = str(tmp_path / "genesis.bin"), tmp_path / "junk"
    junk.write_bytes(b"junk")
    (tmp_path / "empty" / "peers" / "nobody").mkdir(parents=True)
    for words, told in (
        (["no-such-run", "--genesis", genesis], "no run of a swarm"),
        (["x" * 5_000, "--genesis", genesis], "cannot be a path"),
        ([str(tmp_path / "empty"), "--genesis", genesis], "no protocol store"),
        ([str(peer), "--genesis", str(tmp_path / "nowhere")], "genesis cannot be read"),
        ([str(peer), "--genesis", str(tmp_path)], "genesis cannot be read"),
        ([str(peer), "--genesis", str(junk)], "is no genesis"),
        ([str(peer), "--genesis", genesis, "--peer", "finch"], "--peer goes with"),
        ([str(peer), "--genesis", genesis, "--blob", str(junk)], "--blob goes with"),
        ([], "verify --help"),
    ):
        assert main(["verify", *words]) == 2, words
        shown = capsys.readouterr()
        assert shown.err.startswith("error: ") and told in shown.err, shown.err
        assert not shown.out


def test_verifying_loads_no_tensor_library(peer: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom peerformer.interface.cli import main\n"
        "assert main(['verify', sys.argv[1], '--genesis', sys.argv[2]]) == 0\n"
        "assert not {'torch', 'numpy', 'tokenizers'} & set(sys.modules)\n"
    )
    words = [sys.executable, "-c", script, str(peer), str(tmp_path / "genesis.bin")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# --- files to hand on ----------------------------------------------------------------------------


@pytest.fixture
def run(world: World, tmp_path: Path) -> Path:
    """A swarm's run with one peer in it, and the same genesis from elsewhere in genesis.bin."""
    (tmp_path / "genesis.bin").write_bytes(world.genesis.to_bytes())
    run = tmp_path / "runs" / "mine"
    store(world.hosts[0], world.genesis, run / "peers" / "finch").close()
    (run / "genesis.bin").write_bytes(world.genesis.to_bytes())
    (run / "peers" / "finch" / "journal.jsonl").write_bytes(b"")
    return run


def save_checkpoint(run: Path, world: World, number: int) -> Path:
    """Write what a checkpoint of an agreed state consists of, with a small file for its weights."""
    certificate = of_round(world, number)
    path = run / "checkpoints" / f"step-{number:08d}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    state = {
        "kind": "swarm",
        "round": number,
        "chain_id": certificate.chain_id.hex(),
        "state_root": certificate.header.state_root.hex(),
        "certified": encode(Certified(certificate.header, certificate.certificate)).hex(),
        "files": {"model.safetensors": blake3(b"weights").hexdigest()},
    }
    (path / "state.json").write_text(json.dumps(state))
    return path


def flip_hex(text: str, at: int) -> str:
    return flip(bytes.fromhex(text), at).hex()


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("state_root", lambda root: flip_hex(root, 0), "another root"),
        ("certified", lambda item: flip_hex(item, 10), "copy of its header differs"),
        ("certified", lambda item: flip_hex(item, -1), "a signature is wrong"),
        ("certified", lambda item: item[:-2], "damaged"),
        ("certified", lambda item: None, "this chain lacks"),
        ("chain_id", lambda chain: flip_hex(chain, 0), "belongs to chain"),
        ("round", lambda number: number + 900, "after the last decided one"),
        ("round", lambda number: -1, "damaged"),
        ("round", lambda number: "2", "damaged"),
        ("files", lambda files: {}, "'model.safetensors' is not the file"),
        ("files", lambda files: {**files, "gone": "00"}, "'gone' is not the file"),
        ("files", lambda files: {"model.safetensors": "00"}, "'model.safetensors' is not"),
        ("files", lambda files: [], "damaged"),
    ],
)
def test_a_checkpoint_is_held_to_the_chain_and_to_its_list(
    run: Path, verify: Verify, world: World, name: str, change: Callable[[Any], Any], what: str
) -> None:
    path = save_checkpoint(run, world, 2)
    code, shown = verify(run)
    assert code == 0 and "certificate and files of step-00000002" in shown["checked"]
    state = json.loads((path / "state.json").read_text())
    state[name] = change(state[name])
    (path / "state.json").write_text(json.dumps(state))
    code, shown = verify(run)
    assert code == 1 and what in shown["fault"]["what"], shown["fault"]
    assert "certificates" in shown["checked"]  # the chain holds all the same
    (path / "state.json").write_text("junk")
    assert verify(run)[0] == 1


def test_a_checkpoint_lists_no_file_from_elsewhere(run: Path, verify: Verify, world: World) -> None:
    path = save_checkpoint(run, world, 2)
    state = json.loads((path / "state.json").read_text())
    outside = blake3((run / "genesis.bin").read_bytes()).hexdigest()
    state["files"]["../../genesis.bin"] = outside
    (path / "state.json").write_text(json.dumps(state))
    code, shown = verify(run)
    assert code == 1 and "genesis.bin" in shown["fault"]["what"]


def of_round(world: World, number: int) -> RoundCertificate:
    client = LightClient(world.genesis, frozenset({number}))
    disk = world.hosts[0].disk.records
    records = [(key, disk[key]) for key in sorted(disk) if key.startswith("header/")]
    assert client.follow(records) is None
    return client.certificate_of(number)


def test_a_certificate_is_printed_and_holds_alone(
    run: Path, verify: Verify, world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["log", str(run), "--round", str(ROUNDS), "--certificate"]) == 0
    text = capsys.readouterr().out
    file = tmp_path / "certificate.json"
    file.write_text(text)
    code, shown = verify(file)
    certificate = of_round(world, ROUNDS)
    assert code == 0 and shown["rounds"] == ROUNDS and shown["members"] == 6
    assert shown["head"] == certificate.header.digest.hex()
    assert shown["state_root"] == certificate.header.state_root.hex()
    assert read_document(json.loads(text)) == certificate
    words = ["verify", str(file), "--genesis", str(tmp_path / "genesis.bin"), "--blob", str(file)]
    assert main(words) == 2 and "--blob goes with" in capsys.readouterr().err
    assert main(["log", str(run), "--round", "999", "--certificate"]) == 2
    assert "not decided" in capsys.readouterr().err
    assert main(["log", str(run), "--certificate"]) == 2
    assert "--round" in capsys.readouterr().err


def test_evidence_is_printed_and_convicts_alone(
    run: Path, verify: Verify, world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    alive, liar = world.hosts[0].peer, world.hosts[LIAR].keys.peer_id
    assert alive is not None
    items = alive.machine.chain.items
    [number] = [
        item.header.round
        for item in items
        if any(isinstance(operation, Eviction) for operation in item.header.operations)
    ]
    assert main(["log", str(run), "--round", str(number), "--evidence"]) == 0
    file = tmp_path / "evidence.json"
    file.write_text(capsys.readouterr().out)
    code, shown = verify(file)
    assert code == 0 and shown["checked"] == ["chain", "evidence"]
    assert shown["convicted"][0]["peer"] == liar.hex()
    assert "signed two" in shown["convicted"][0]["what"]
    assert main(["verify", str(file), "--genesis", str(tmp_path / "genesis.bin")]) == 0
    told = capsys.readouterr().out
    assert name_of(liar) in told and "signed two" in told
    document = json.loads(file.read_text())
    for change in ("second", "first"):
        forged = copy.deepcopy(document)
        envelope = forged["round_evidence"]["evidence"][0]["contradiction"][change]
        envelope["signature"] = flip_hex(envelope["signature"], 0)
        file.write_text(json.dumps(forged))
        code, shown = verify(file)
        assert code == 1 and "convicts nobody" in shown["fault"]["what"]
    one = document["round_evidence"]["evidence"][0]["contradiction"]
    one["second"] = one["first"]
    file.write_text(json.dumps(document))
    assert verify(file)[0] == 1
    quiet = next(n for n in range(1, ROUNDS) if n != number)
    assert main(["log", str(run), "--round", str(quiet), "--evidence"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "junk",
        "[]",
        "{}",
        "null",
        '{"round_certificate": {}}',
        '{"round_certificate": {}, "round_evidence": {}}',
        "[" * 100_000,
        '{"round_evidence": {"chain_id": "00", "round": 1, "evidence": []}}',
        '{"round_evidence": {"chain_id": "%s", "round": 1, "evidence": []}}' % ("00" * 32),
        '{"round_evidence": {"round": 1, "round": 1}}',
        "9" * 10_000,
        "\x00\xff",
    ],
    ids=range(13),
)
def test_a_file_that_is_neither_is_a_named_fault(
    world: World, verify: Verify, tmp_path: Path, text: str
) -> None:
    (tmp_path / "genesis.bin").write_bytes(world.genesis.to_bytes())
    file = tmp_path / "file.json"
    file.write_bytes(text.encode("latin-1"))
    code, shown = verify(file)
    assert code == 1 and shown["fault"]["what"] and not shown["checked"]
