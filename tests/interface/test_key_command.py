"""`peerformer key`: made, shown, protected, backed up, restored; and never voted with twice."""

import json
import stat
from pathlib import Path

import pytest

from peerformer.errors import IdentityError
from peerformer.interface.cli import main
from peerformer.node import protected_key
from peerformer.node.journal import DurableStore
from peerformer.node.keyring import load_key, load_or_create_key, save_key
from peerformer.protocol.identity import KeyPair, name_of

SEED, PASSPHRASE = b"\x2a" * 32, "correct horse"
KEYS = KeyPair.from_seed(SEED)
CHAIN = b"\x07" * 32
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test in a directory of its own, without a passphrase in its environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PEERFORMER_PASSPHRASE", raising=False)
    return tmp_path


def key_of(here: Path, run: str = "node-8888") -> Path:
    return here / "runs" / run / "peers" / "me" / "key"


def opened(peer: Path) -> str:
    """What comes of opening a peer's store, which is closed again."""
    try:
        DurableStore.open(peer, peer_id=KEYS.peer_id, chain_id=CHAIN).close()
    except IdentityError as error:
        return str(error)
    return "opened"


def passphrase_file(here: Path, text: str = PASSPHRASE, mode: int = 0o600) -> str:
    path = here / f"word-{mode:o}-{text[:4]}"
    path.write_text(f"{text}\n")
    path.chmod(mode)
    return str(path)


def test_a_new_key_is_shown_by_name_and_never_by_its_secret(here: Path, capsys: Capture) -> None:
    assert main(["key", "new", "--run", "mine"]) == 0
    path = key_of(here, "mine")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    seed = load_key(path)
    assert main(["key", "show"]) == 0  # the only run there is
    told = capsys.readouterr().out
    peer = KeyPair.from_seed(seed).peer_id
    assert name_of(peer) in told and peer.hex() in told and seed.hex() not in told
    assert main(["key", "show", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["peer_id"] == peer.hex() and found["protected"] is False
    assert seed.hex() not in str(found)
    assert main(["key", "new", "--run", "mine"]) == 2
    assert "there is a key already" in capsys.readouterr().err and load_key(path) == seed


def test_a_protected_key_opens_with_its_passphrase_and_with_no_other(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = here / "key"
    save_key(path, SEED, PASSPHRASE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SEED.hex() not in path.read_text() and KEYS.peer_id.hex() in path.read_text()
    assert load_key(path, lambda: PASSPHRASE) == SEED
    with pytest.raises(IdentityError, match="the passphrase is wrong"):
        load_key(path, lambda: "Correct horse")
    with pytest.raises(IdentityError, match="none was given") as caught:
        load_or_create_key(path)
    assert "--passphrase-file" in str(caught.value)
    monkeypatch.setenv("PEERFORMER_PASSPHRASE", PASSPHRASE)
    assert load_or_create_key(path) == SEED


@pytest.mark.parametrize("word", range(6))
def test_every_word_of_a_protected_key_counts(here: Path, word: int) -> None:
    line = protected_key.protect(SEED, PASSPHRASE, cost_log2=10)
    assert protected_key.unprotect(line, PASSPHRASE) == SEED
    words = line.split(" ")
    wrong = words[word][:-1] + ("0" if words[word][-1] != "0" else "1")
    words[word] = "scrypt-11" if word == 1 else wrong
    errors = (protected_key.MalformedLineError, protected_key.WrongPassphraseError)
    with pytest.raises(errors):
        protected_key.unprotect(" ".join(words), PASSPHRASE)


def test_a_key_file_cannot_ask_for_all_of_the_memory(here: Path) -> None:
    line = protected_key.protect(SEED, PASSPHRASE, cost_log2=10).replace("scrypt-10", "scrypt-30")
    with pytest.raises(protected_key.MalformedLineError, match="no cost"):
        protected_key.unprotect(line, PASSPHRASE)


def test_a_wrong_passphrase_of_a_node_is_one_clear_error(here: Path, capsys: Capture) -> None:
    save_key(key_of(here), SEED, PASSPHRASE)
    wrong = passphrase_file(here, "wrong")
    words = ["node", "--bootstrap", "127.0.0.1:9", "--port", "0", "--run", "node-8888"]
    assert main([*words, "--no-console", "--passphrase-file", wrong]) == 1
    told = capsys.readouterr().err
    assert told.count("error:") == 1 and "the passphrase is wrong" in told
    assert main([*words, "--no-console", "--passphrase-file", passphrase_file(here)]) == 4
    assert "no peer can be reached" in capsys.readouterr().err  # it opened, and went on
    public = passphrase_file(here, mode=0o644)
    assert main([*words, "--no-console", "--passphrase-file", public]) == 1
    assert f"chmod 600 {public}" in capsys.readouterr().err


def test_a_backup_is_a_private_copy_under_a_passphrase_if_one_is_given(
    here: Path, capsys: Capture
) -> None:
    save_key(key_of(here), SEED)
    assert main(["key", "backup", "plain"]) == 0
    assert "not protected" in capsys.readouterr().out
    assert main(["key", "backup", "safe", "--passphrase-file", passphrase_file(here)]) == 0
    assert "not protected" not in capsys.readouterr().out
    for name, asked in (("plain", lambda: ""), ("safe", lambda: PASSPHRASE)):
        assert stat.S_IMODE((here / name).stat().st_mode) == 0o600
        assert load_key(here / name, asked) == SEED
    assert main(["key", "backup", "safe"]) == 2
    assert "there is a file of that name already" in capsys.readouterr().err


def test_a_key_restored_on_an_empty_disk_does_not_vote(here: Path, capsys: Capture) -> None:
    save_key(here / "copy", SEED)
    assert main(["key", "restore", "copy", "--run", "mine"]) == 0
    told = capsys.readouterr().out
    assert "does not vote" in told and "join under a new key" in told
    peer = key_of(here, "mine").parent
    assert "the protocol store of this key is gone" in opened(peer)

    # Neither is a store taken that comes without the count of what it was.
    old = here / "old"
    old.mkdir()
    DurableStore.open(old, peer_id=KEYS.peer_id, chain_id=CHAIN).close()
    (old / "protocol.db").rename(peer / "protocol.db")
    assert "older than it should be" in opened(peer)
    (old / "epoch").rename(peer / "epoch")  # the two together are what it was
    assert opened(peer) == "opened"


def test_a_key_beside_its_store_goes_on_and_one_never_used_begins(
    here: Path, capsys: Capture
) -> None:
    save_key(here / "copy", SEED)
    peer = key_of(here, "mine").parent
    peer.mkdir(parents=True)
    DurableStore.open(peer, peer_id=KEYS.peer_id, chain_id=CHAIN).close()
    assert main(["key", "restore", "copy", "--run", "mine"]) == 0
    assert "goes on where it was" in capsys.readouterr().out
    DurableStore.open(peer, peer_id=KEYS.peer_id, chain_id=CHAIN).close()

    for words in ((), ("--never-used",)):  # a second thought is possible
        assert main(["key", "restore", "copy", "--run", "new", *words]) == 0
    assert "taken as new" in capsys.readouterr().out
    DurableStore.open(key_of(here, "new").parent, peer_id=KEYS.peer_id, chain_id=CHAIN).close()


def test_restore_replaces_no_key_and_takes_none_that_others_read(
    here: Path, capsys: Capture
) -> None:
    save_key(here / "copy", SEED)
    save_key(key_of(here, "mine"), b"\x01" * 32)
    assert main(["key", "restore", "copy", "--run", "mine"]) == 2
    assert "another key is here" in capsys.readouterr().err
    assert load_key(key_of(here, "mine")) == b"\x01" * 32
    (here / "copy").chmod(0o604)
    assert main(["key", "restore", "copy", "--run", "other"]) == 1
    assert "chmod 600" in capsys.readouterr().err and not key_of(here, "other").exists()
    foreign = key_of(here, "foreign").parent
    foreign.mkdir(parents=True)
    DurableStore.open(foreign, peer_id=b"\x03" * 32, chain_id=CHAIN).close()
    (here / "copy").chmod(0o600)
    assert main(["key", "restore", "copy", "--run", "foreign"]) == 1
    assert "belongs to another key" in capsys.readouterr().err


def test_a_key_that_is_not_there_is_named_with_what_to_type(here: Path, capsys: Capture) -> None:
    assert main(["key", "show"]) == 2
    assert "peerformer key new" in capsys.readouterr().err
    for run in ("a", "b"):
        save_key(key_of(here, run), SEED)
    assert main(["key", "show"]) == 2
    told = capsys.readouterr().err
    assert "which run is meant" in told and "a, b" in told and "--run NAME" in told
