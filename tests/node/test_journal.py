"""The durable store: all or nothing through a kill, one content a slot, refused when in doubt."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from peerformer.errors import IdentityError
from peerformer.node.journal import DurableStore

PEER, CHAIN = b"\x01" * 32, b"\x02" * 32
VICTIM = """
import os, signal, sys
from pathlib import Path
from peerformer.node.journal import DurableStore

def fault(point):
    if point == sys.argv[2] and armed:
        os.kill(os.getpid(), signal.SIGKILL)

armed = False
store = DurableStore.open(
    Path(sys.argv[1]), peer_id=b"\\x01" * 32, chain_id=b"\\x02" * 32, fault=fault
)
store.persist([("slot/1", b"first"), ("round", b"1")])
armed = True
store.persist([("slot/2", b"second"), ("round", b"2")])
"""


def open_store(path: Path, peer_id: bytes = PEER, chain_id: bytes = CHAIN) -> DurableStore:
    return DurableStore.open(path, peer_id=peer_id, chain_id=chain_id)


@pytest.mark.parametrize("point", ["before-begin", "before-commit", "after-commit"])
def test_a_kill_leaves_all_of_a_transaction_or_nothing(tmp_path: Path, point: str) -> None:
    killed = subprocess.run([sys.executable, "-c", VICTIM, str(tmp_path), point], check=False)
    assert killed.returncode == -signal.SIGKILL
    store = open_store(tmp_path)
    before = {"slot/1": b"first", "round": b"1"}
    after = {"slot/1": b"first", "slot/2": b"second", "round": b"2"}
    assert store.load() == (after if point == "after-commit" else before)
    store.close()


def test_a_slot_is_written_once_and_the_rest_of_the_transaction_falls_with_it(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path)
    store.persist([("slot/1", b"a"), ("round", b"1")])
    store.persist([("slot/1", b"a"), ("round", b"2")])
    with pytest.raises(IdentityError):
        store.persist([("round", b"3"), ("slot/1", b"b")])
    with pytest.raises(IdentityError):
        store.persist([("slot/2", b"a"), ("slot/2", b"b")])
    assert store.load() == {"slot/1": b"a", "round": b"2"}
    assert store.load("slot/") == {"slot/1": b"a"}
    store.persist((), ["slot/1"])
    assert store.load("slot/") == {}
    store.close()


def test_a_missing_database_is_refused_and_named(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    (tmp_path / "protocol.db").unlink()
    with pytest.raises(IdentityError) as caught:
        open_store(tmp_path)
    assert caught.value.where == str(tmp_path / "protocol.db") and caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\x00" * 4096, b"no database at all" * 300])
def test_a_damaged_database_is_refused(tmp_path: Path, content: bytes) -> None:
    open_store(tmp_path).close()
    (tmp_path / "protocol.db").write_bytes(content)
    with pytest.raises(IdentityError):
        open_store(tmp_path)


@pytest.mark.parametrize("ids", [(b"\x09" * 32, CHAIN), (PEER, b"\x09" * 32)])
def test_a_database_of_another_key_or_chain_is_refused(tmp_path: Path, ids) -> None:
    open_store(tmp_path).close()
    with pytest.raises(IdentityError, match="another key or swarm"):
        open_store(tmp_path, *ids)


def test_a_database_two_starts_old_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    old = (tmp_path / "protocol.db").read_bytes()
    open_store(tmp_path).close()
    open_store(tmp_path).close()
    (tmp_path / "protocol.db").write_bytes(old)
    with pytest.raises(IdentityError, match="older"):
        open_store(tmp_path)


def test_a_backup_of_the_last_start_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    old = (tmp_path / "protocol.db").read_bytes()
    open_store(tmp_path).close()
    (tmp_path / "protocol.db").write_bytes(old)
    with pytest.raises(IdentityError, match="older"):
        open_store(tmp_path)


def test_a_backup_from_within_this_start_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.persist([("slot/1", b"a")])
    store.close()
    old = (tmp_path / "protocol.db").read_bytes()
    epoch = (tmp_path / "epoch").read_text()
    (tmp_path / "epoch").write_text(epoch.replace("1\n", "2\n"))  # one more was written then
    (tmp_path / "protocol.db").write_bytes(old)
    with pytest.raises(IdentityError, match="older"):
        open_store(tmp_path)


def test_a_missing_epoch_file_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.persist([("slot/1", b"a")])
    store.close()
    (tmp_path / "epoch").unlink()
    with pytest.raises(IdentityError, match="older"):
        open_store(tmp_path)


def test_one_store_is_open_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(IdentityError, match="another process"):
        open_store(tmp_path)
    store.close()
    open_store(tmp_path).close()
