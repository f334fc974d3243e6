"""A private group: who holds no certificate of its authority does not get past the handshake."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from peerformer.errors import ConfigError, IdentityError
from peerformer.interface.cli import main
from peerformer.interface.network_options import NetworkOptions
from peerformer.node.authority import (
    AuthorityFiles,
    certify,
    check_fits,
    new_authority,
)
from peerformer.node.certificate import Group
from peerformer.node.limits import RelayLimits
from peerformer.node.registration import Registration
from peerformer.node.relay import Relay
from peerformer.node.transport import Connection, DialError, Transport
from peerformer.protocol.identity import KeyPair, name_of

SEEDS = [bytes([number]) * 32 for number in range(1, 5)]
PEERS = [KeyPair.from_seed(seed).peer_id for seed in SEEDS]


def group_of(folder: Path, peer: bytes, now: datetime | None = None) -> Group:
    """The group of an authority, made if it is not there yet, as one peer sees it."""
    files = AuthorityFiles(folder)
    if not files.key.exists():
        new_authority(files, folder.name)
    return Group(files.certificate.read_text(), certify(files, peer, 30, now))


def test_peers_of_a_group_meet_and_strangers_and_other_groups_do_not(tmp_path: Path) -> None:
    async def story() -> None:
        ours = [group_of(tmp_path / "ours", peer) for peer in PEERS[:2]]
        server, friend = (Transport(SEEDS[i], group=ours[i]) for i in (0, 1))
        other = Transport(SEEDS[2], group=group_of(tmp_path / "theirs", PEERS[2]))
        stranger = Transport(SEEDS[3])
        arrived: asyncio.Queue[Connection] = asyncio.Queue()
        host, port = await server.listen("127.0.0.1", 0, arrived.put_nowait)
        address = f"{host}:{port}"
        connection = await friend.dial(address, expect=server.peer_id)
        connection.send(b"hello")
        assert await (await arrived.get()).receive() == b"hello"
        for outsider in (other, stranger):
            with pytest.raises(DialError, match="private group"):
                await outsider.dial(address, expect=server.peer_id)
        # One that takes any server's word is refused by the server.
        stranger.client_context.verify_mode = 0
        with pytest.raises(DialError):
            await stranger.dial(address, expect=server.peer_id)
        assert arrived.empty()
        for transport in (server, friend, other, stranger):
            await transport.close()

    asyncio.run(story())


def test_a_certificate_that_ran_out_lets_nobody_in(tmp_path: Path) -> None:
    async def story() -> None:
        last_year = datetime.now(UTC) - timedelta(days=365)
        late = group_of(tmp_path / "ours", PEERS[1], last_year)
        with pytest.raises(ConfigError) as caught:
            check_fits(SEEDS[1], late)
        assert "ran out" in str(caught.value) and PEERS[1].hex() in str(caught.value)
        server = Transport(SEEDS[0], group=group_of(tmp_path / "ours", PEERS[0]))
        host, port = await server.listen("127.0.0.1", 0, lambda _: None)
        latecomer = Transport(SEEDS[1], group=late)
        with pytest.raises(DialError):
            await latecomer.dial(f"{host}:{port}", expect=None)
        for transport in (server, latecomer):
            await transport.close()

    asyncio.run(story())


def test_what_does_not_fit_a_peer_is_told_with_what_to_type(tmp_path: Path) -> None:
    mine = group_of(tmp_path / "ours", PEERS[0])
    theirs = group_of(tmp_path / "theirs", PEERS[0])
    check_fits(SEEDS[0], mine)
    check_fits(SEEDS[0], None)
    for seed, group, why in (
        (SEEDS[1], mine, "another key"),
        (SEEDS[0], Group(mine.authority, theirs.leaf), "another authority"),
        (SEEDS[0], Group(mine.authority, ""), "--certificate"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_fits(seed, group)
        assert why in str(caught.value) and "peerformer authority certify" in str(caught.value)


def test_an_authority_is_kept_to_its_owner_and_not_overwritten(tmp_path: Path) -> None:
    files = AuthorityFiles(tmp_path / "ours")
    new_authority(files, "ours")
    assert files.key.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="already"):
        new_authority(files, "ours")
    files.key.chmod(0o644)
    with pytest.raises(IdentityError, match="read by others"):
        certify(files, PEERS[0], 1)
    with pytest.raises(ConfigError, match="no folder of an authority"):
        certify(AuthorityFiles(tmp_path), PEERS[0], 1)


def test_the_commands_make_what_the_flags_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, peer = tmp_path / "ours", PEERS[0].hex()
    assert main(["authority", "new", str(folder)]) == 0
    assert main(["authority", "certify", str(folder), peer]) == 0
    assert main(["authority", "certify", str(folder), peer[:-1]]) == 2
    leaf = folder / f"{name_of(PEERS[0])}-{peer[:8]}.pem"
    given = NetworkOptions(authority=folder / "authority.pem", certificate=leaf).of_peer()
    check_fits(SEEDS[0], given["reach"].group)
    capsys.readouterr()
    for wrong in (
        NetworkOptions(certificate=leaf),
        NetworkOptions(authority=folder / "authority.key", certificate=leaf),
    ):
        with pytest.raises(ConfigError):
            wrong.of_peer()


def test_a_group_is_kept_inside_what_a_relay_passes_on_too(tmp_path: Path) -> None:
    """The relay is of the group, and so must both ends be: the inner TLS asks for the same."""

    async def story() -> None:
        groups = [group_of(tmp_path / "ours", peer) for peer in PEERS[:3]]
        public, called, caller = (Transport(SEEDS[i], group=groups[i]) for i in range(3))
        relay = Relay(public.budget, RelayLimits(), lambda _: True)
        public.services |= relay.services
        host, port = await public.listen("127.0.0.1", 0, lambda _: None)
        arrived: asyncio.Queue[Connection] = asyncio.Queue()
        called.take_in(arrived.put_nowait)
        registration = await Registration.make(called, f"{host}:{port}", public.peer_id)
        called.spawn(registration.keep())
        connection = await caller.dial(registration.address, expect=called.peer_id)
        connection.send(b"hello")
        assert await (await arrived.get()).receive() == b"hello"
        for transport in (caller, called, public):
            await transport.close()

    asyncio.run(story())
