"""Identity files that are refused rather than repaired, and keys remembered by address."""

import stat
from pathlib import Path

import pytest

from peerformer.errors import IdentityError
from peerformer.node.keyring import KnownPeers, load_or_create_key, save_key


def test_a_new_key_is_private_and_the_same_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"
    seed = load_or_create_key(path)
    assert len(seed) == 32 and load_or_create_key(path) == seed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["key"]


def test_a_key_that_others_can_read_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "key"
    load_or_create_key(path)
    path.chmod(0o640)
    with pytest.raises(IdentityError) as caught:
        load_or_create_key(path)
    assert caught.value.hint == f"chmod 600 {path}"


def test_an_existing_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key"
    save_key(path, b"\x01" * 32)
    with pytest.raises(FileExistsError):
        save_key(path, b"\x02" * 32)
    assert load_or_create_key(path) == b"\x01" * 32


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: b"",
        lambda line: line[:40],
        lambda line: line.replace(b"0101", b"0201", 1),
        lambda line: line.replace(b"v1", b"v9"),
        lambda line: b"\xff" * 100,
        lambda line: line + line,
    ],
)
def test_a_damaged_key_is_refused_and_left_as_it_is(tmp_path: Path, damage) -> None:
    path = tmp_path / "key"
    save_key(path, b"\x01" * 32)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(IdentityError, match="damaged"):
        load_or_create_key(path)
    assert path.read_bytes() == damaged


def test_a_changed_key_at_a_known_address_is_noticed(tmp_path: Path) -> None:
    known = KnownPeers(tmp_path / "known-peers")
    ours, other = b"\x01" * 32, b"\x02" * 32
    assert known.check("a.example:1", ours) == "new"
    known.remember("a.example:1", ours)
    known.remember("[::1]:2", other)
    again = KnownPeers(tmp_path / "known-peers")
    assert again.check("a.example:1", ours) == "known"
    assert again.check("a.example:1", other) == "changed"
    again.remember("a.example:1", other)
    assert KnownPeers(tmp_path / "known-peers").check("a.example:1", other) == "known"


def test_a_damaged_list_of_known_peers_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "known-peers"
    path.write_text(f"a:1 {bytes(32).hex()}\nb:2 zz\n")
    with pytest.raises(IdentityError) as caught:
        KnownPeers(path).check("a:1", bytes(32))
    assert caught.value.where == f"{path}, line 2"
