"""Real processes and sockets: who is let into a swarm, and what all others are told instead."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from peerformer import __version__, events
from peerformer.errors import EvictedError, IdentityError, PeerformerError, SwarmError
from peerformer.interface.cli import main
from peerformer.journal import read_journal
from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import SwarmDirectory
from peerformer.node.examining import CLOCK_SECONDS_MAX, PeerClocks
from peerformer.node.founding import found
from peerformer.node.joining import check_key
from peerformer.node.keyring import KnownPeers, load_key, save_key
from peerformer.node.process import Running
from peerformer.node.transport import Connection, ConnectionClosed, Transport
from peerformer.protocol.attestations import Attestation
from peerformer.protocol.certificates import certify
from peerformer.protocol.identity import KeyPair, name_of
from peerformer.protocol.machine import Machine
from peerformer.protocol.messages import (
    PROTOCOL_VERSION,
    Certified,
    Commit,
    Hello,
    pack,
    sign,
    unpack,
)
from peerformer.protocol.newcomer_packets import (
    BANNED,
    OTHER_VERSION,
    About,
    AskAbout,
    Farewell,
)
from peerformer.protocol.ticket import Place, read_ticket, write_ticket
from peerformer.settings import resolve
from tests.node.founder import (
    SECONDS_MAX,
    WITH_ANOTHER_VERSION,
    Founder,
    founder,
    started,
    ticket_of,
)
from tests.node.test_hostile import SMALL

__all__ = ["founder"]  # the fixture

SEEDS = [bytes((0x51 + i,)) * 32 for i in range(4)]
KEYS = {seed: KeyPair.from_seed(seed) for seed in SEEDS}
Capture = pytest.CaptureFixture[str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- by a ticket ----------------------------------------------------------------------------------


@pytest.mark.timeout(400)
def test_a_ticket_admits_as_many_as_it_says_and_the_next_is_told_so(
    founder: Founder, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ticket = ticket_of(founder, capsys, "--uses", "1", "--expires", "30m")
    given = read_ticket(ticket, time.time()).invitation
    assert given.uses == 1 and 1_700 < given.expires - time.time() <= 1_800
    words = ("--port", "0", "--no-console", "--guest", "--data", "synthetic:1")
    founder.say("train")  # on with it: a round is what admits
    process = started(tmp_path, "join", ticket, *words, "--run", "first")
    me = tmp_path / "runs" / "first" / "peers" / "me"
    try:
        deadline = time.monotonic() + 2 * SECONDS_MAX
        while True:
            path = me / "status.json"
            status = json.loads(path.read_text()) if path.is_file() else {}
            mine = [m for m in status.get("members", ()) if m["peer_id"] == status["peer_id"]]
            if mine:
                break
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, status
            time.sleep(0.1)
        assert mine[0]["role"] == "guest"
        while (me / "tickets").exists():  # a member has no use for it
            assert time.monotonic() < deadline
            time.sleep(0.1)
        while founder.status["reached_at"] != [founder.address]:  # the guest called it back
            assert time.monotonic() < deadline, founder.status["reached_at"]
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate()
    founder.say("train")
    assert main(["join", ticket, "--run", "second", "--port", "0"]) == 2
    told = capsys.readouterr().err
    inviter = founder.status["name"]
    assert told.count("error:") == 1 and "lets nobody in any more" in told
    assert "all whom it admits have come" in told and f"ask {inviter} for a new one" in told
    assert not (tmp_path / "runs" / "second" / "genesis.bin").exists()


def test_whoever_has_no_ticket_is_told_that_it_takes_one(
    founder: Founder, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["node", "--bootstrap", founder.address, "--port", "0", "--no-console"]) == 4
    told = capsys.readouterr().err
    name, key = founder.status["name"], founder.status["peer_id"]
    assert f"first use   {founder.address} is {name}, key {key}" in told
    assert "admits by invitation only" in told and "peerformer join TICKET" in told


def test_a_ticket_that_leads_nowhere_says_where_it_was_tried_and_why_each_failed(
    founder: Founder, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = read_ticket(ticket_of(founder, capsys), time.time())
    keys = KeyPair.from_seed(load_key(founder.directory / "runs" / "mine" / "peers" / "me" / "key"))
    nowhere, stranger = f"127.0.0.1:{free_port()}", KEYS[SEEDS[0]].peer_id
    places = (
        Place(keys.peer_id, nowhere.encode()),
        Place(stranger, founder.address.encode()),
    )
    ticket = write_ticket(keys, replace(good.invitation, places=places))
    assert main(["join", ticket, "--port", "0"]) == 4
    told = capsys.readouterr().err
    assert told.count("error:") == 1 and "none of the 2 addresses" in told
    assert f"{name_of(keys.peer_id)} at {nowhere}: no peer can be reached" in told
    assert "refused" in told and "another key than the one meant" in told


def test_what_cannot_work_is_refused_before_anything_is_fetched(
    founder: Founder, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ticket = ticket_of(founder, capsys)
    port = founder.address.rpartition(":")[2]
    (tmp_path / "nothing").mkdir()
    late = read_ticket(ticket, time.time())
    keys = KeyPair.from_seed(load_key(founder.directory / "runs" / "mine" / "peers" / "me" / "key"))
    expired = write_ticket(keys, replace(late.invitation, expires=int(time.time()) - 7_200))
    for words, code, said, cure in (
        ([ticket, "--port", port], 4, "cannot listen on", f"--port {int(port) + 1}"),
        ([ticket, "--data", "nothing"], 1, "no text was found in nothing", "--data PATH"),
        ([ticket[:-2]], 2, "the ticket is damaged", "peerformer invite"),
        ([expired], 2, "expired, 2.0 hours ago", "timedatectl"),
        ([], 2, "a ticket is needed", "peerformer invite"),
    ):
        assert main(["join", *words, "--run", "refused"]) == code, said
        told = capsys.readouterr().err
        assert told.count("error:") == 1 and said in told and cure in told, told
        assert not (tmp_path / "runs" / "refused" / "genesis.bin").exists()


def test_a_key_that_others_can_read_is_not_joined_with(
    founder: Founder, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    key = tmp_path / "runs" / "open" / "peers" / "me" / "key"
    save_key(key, SEEDS[0])
    key.chmod(0o644)
    assert main(["join", ticket_of(founder, capsys), "--port", "0", "--run", "open"]) == 1
    told = capsys.readouterr().err
    assert "may be read by others" in told and "chmod 600" in told


@pytest.mark.deep  # half a minute; a member that is left behind is told alike
@pytest.mark.timeout(400)
def test_a_newcomer_of_another_version_is_told_which_one_to_install(
    founder: Founder, tmp_path: Path
) -> None:
    words = ("node", "--bootstrap", founder.address, "--port", "0", "--no-console")
    process = started(tmp_path, *words, before=WITH_ANOTHER_VERSION)
    try:
        _, told = process.communicate(timeout=2 * SECONDS_MAX)
    finally:
        process.kill()
    print(told)
    assert process.returncode == 4 and told.count("error:") == 1
    assert f"speaks protocol {PROTOCOL_VERSION} (peerformer {__version__})" in told
    assert f"pip install 'peerformer=={__version__}'" in told
    journal = read_journal(founder.directory / "runs" / "mine" / "peers" / "me" / "journal.jsonl")
    warned = [event for event in journal if isinstance(event, events.Warned)]
    assert any("speaks protocol 7, I speak" in event.why for event in warned), warned


def sent_away_by(farewell: Farewell, *greeting: bytes) -> int:
    """Let `node` come to a peer that greets and says farewell; returns the exit code."""

    async def story() -> int:
        transport = Transport(SEEDS[0])

        def answer(connection: Connection) -> None:
            for frame in (*greeting, pack(farewell)):
                connection.send(frame)

        _, port = await transport.listen("127.0.0.1", 0, answer)
        words = ["node", "--bootstrap", f"127.0.0.1:{port}", "--port", "0", "--no-console"]
        code = await asyncio.to_thread(main, [*words, "--run", farewell.software.hex()[:8]])
        await transport.close()
        return code

    return asyncio.run(story())


def test_a_newcomer_with_an_evicted_key_is_told_so_and_ends_with_5(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sent_away_by(Farewell(PROTOCOL_VERSION, b"0.1.0", BANNED)) == 5
    told = capsys.readouterr().err
    assert "was evicted from the swarm" in told and name_of(KEYS[SEEDS[0]].peer_id) in told
    assert "join under a new key" in told and "peerformer log --evidence" in told


def test_a_newcomer_does_not_type_what_a_liar_calls_its_version(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    greeting = pack(Hello(9, bytes(32), 0, None))
    assert sent_away_by(Farewell(9, b"2.0.1", OTHER_VERSION), greeting) == 4
    assert "pip install 'peerformer==2.0.1'" in capsys.readouterr().err
    liar = Farewell(9, b"1'; rm -rf ~; '", OTHER_VERSION)
    assert sent_away_by(liar, greeting) == 4
    told = capsys.readouterr().err
    assert "rm -rf" not in told and "ask which version the others run" in told


def test_a_changed_key_at_a_known_address_is_refused(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    port = free_port()

    async def met(seed: bytes) -> str:
        transport = Transport(seed)
        await transport.listen("127.0.0.1", port, lambda connection: connection._writer.close())
        words = ["node", "--bootstrap", f"127.0.0.1:{port}", "--port", "0", "--no-console"]
        assert await asyncio.to_thread(main, words) == 4
        await transport.close()
        return capsys.readouterr().err

    address, first = f"127.0.0.1:{port}", KEYS[SEEDS[0]].peer_id
    told = asyncio.run(met(SEEDS[0]))
    assert f"first use   {address} is {name_of(first)}, key {first.hex()}" in told
    assert "remembered" in told and "another key" not in told
    told = asyncio.run(met(SEEDS[0]))
    assert "first use" not in told and "another key" not in told
    told = asyncio.run(met(SEEDS[1]))
    assert "shows another key than before" in told and f"take {address} out of" in told


# --- of a peer that runs --------------------------------------------------------------------------


@asynccontextmanager
async def one_of_four(path: Path) -> AsyncIterator[Running]:
    """One of four founders, running in this process; the others are where the test wants them."""
    swarm = SwarmDirectory(path / "swarm")
    found(swarm, resolve(size="nano", overrides={**SMALL, "swarm.peers": 4}).config, SEEDS)
    directory = swarm.peer("me").make()
    save_key(directory.key, SEEDS[0])
    running = Running(swarm, directory, PeerOptions(threads=1, validates=False))
    await running.start()
    try:
        yield running
    finally:
        running.node.stop("the test is over")
        try:
            await running.run_until_stopped()
        except PeerformerError:
            pass  # what the test waited for


async def come(running: Running, seed: bytes, clock_seconds: float | None = None) -> Connection:
    """Connect as another founder and greet; answer what time it is, if one is given."""
    transport = Transport(seed)
    connection = await transport.dial(running.parts.address, expect=running.peer.machine.me)
    chain_id = running.peer.machine.chain.chain_id
    connection.send(pack(Hello(PROTOCOL_VERSION, chain_id, 0, None)))

    async def answer() -> None:
        try:
            while True:
                packet = unpack(await connection.receive())
                if isinstance(packet, AskAbout) and clock_seconds is not None:
                    told = int((time.time() + clock_seconds) * 1_000)
                    connection.send(pack(About(told, b"0.1.0", b"")))
        except ConnectionClosed:
            await transport.close()

    running.node.spawn(answer())
    return connection


async def failure(running: Running) -> BaseException | None:
    async with asyncio.timeout(30):
        await asyncio.wait([running.node.stopped])
    return running.node.stopped.exception()


def test_that_it_was_evicted_is_believed_of_more_voters_than_may_lie(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_of_four(tmp_path) as running:
            word = pack(Farewell(PROTOCOL_VERSION, b"0.1.0", BANNED))
            liar = await come(running, SEEDS[1])
            for _ in range(3):
                liar.send(word)
            (await come(running, b"\x09" * 32)).send(word)  # no voter at all
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await asyncio.shield(running.node.stopped)
            (await come(running, SEEDS[2])).send(word)
            error = await failure(running)
            assert isinstance(error, EvictedError) and error.exit_code == 5
            assert "new key" in str(error)

    asyncio.run(story())


def test_a_member_left_behind_by_a_new_version_is_told_what_to_install(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_of_four(tmp_path) as running:
            for seed in SEEDS[1:3]:
                word = Farewell(PROTOCOL_VERSION + 1, b"0.9.0", OTHER_VERSION)
                (await come(running, seed)).send(pack(word))
            error = await failure(running)
            assert isinstance(error, SwarmError)
            assert error.hint == "pip install 'peerformer==0.9.0'"

    asyncio.run(story())


@pytest.mark.parametrize("off", [(600.0, 590.0, 0.0), (600.0, 0.0, 0.0), (600.0, -600.0, 0.0)])
def test_a_wrong_clock_is_told_once_when_most_say_so(
    off: tuple[float, ...], tmp_path: Path
) -> None:
    def warnings(running: Running) -> list[events.Warned]:
        journal = read_journal(running.directory.journal)
        return [event for event in journal if isinstance(event, events.Warned)]

    async def story() -> None:
        async with one_of_four(tmp_path) as running:
            for seed, seconds in zip(SEEDS[1:], off, strict=True):
                await come(running, seed, seconds)
            async with asyncio.timeout(30):
                while len(running.node.examiner.clocks.behind) < 3:
                    await asyncio.sleep(0.02)
            if sum(seconds > CLOCK_SECONDS_MAX for seconds in off) < 2:
                assert running.node.examiner.clocks.fault(3) is None
                assert not warnings(running)
                return
            async with asyncio.timeout(30):
                while not warnings(running):
                    await asyncio.sleep(0.02)
            running.standing._look_at_clock()
            (told,) = warnings(running)
            assert "9.9 minutes behind" in told.what or "10.0 minutes behind" in told.what
            assert "timedatectl" in told.hint
            assert running.status()["clock_off_seconds"] == pytest.approx(595, abs=6)
            assert not running.node.stopped.done()

    asyncio.run(story())


def test_a_clock_is_judged_by_more_than_half_of_the_connected() -> None:
    clocks = PeerClocks({b"a": 400.0, b"b": -400.0})
    assert clocks.fault(2) is None
    clocks.behind[b"b"] = 500.0
    assert clocks.fault(2) == 450.0
    assert clocks.fault(4) is None  # two have not said anything
    assert PeerClocks({b"a": -301.0}).fault(1) == -301.0
    assert PeerClocks().fault(0) is None


def test_a_peer_whose_key_signed_elsewhere_stops(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_of_four(tmp_path) as running:
            machine = running.peer.machine
            genesis, chain_id = machine.genesis, machine.chain.chain_id
            builder = Machine(genesis, SEEDS[1], now=time.time())
            for keys in KEYS.values():
                signed = sign(keys, chain_id, Attestation(1, ()))
                builder.collection.attestations[keys.peer_id] = signed
            body = builder.ballot.headers.draft(leads=True)
            assert body is not None
            vote = Commit(1, 0, body.header.digest)
            signatures = {k.peer_id: sign(k, chain_id, vote).signature for k in KEYS.values()}
            voters = machine.chain.members.voters
            decided = Certified(body.header, certify(vote, signatures, voters))
            (await come(running, SEEDS[1])).send(pack(decided))
            error = await failure(running)
            assert isinstance(error, IdentityError), error
            assert "has signed for round 1 somewhere else" in str(error)

    asyncio.run(story())


def test_a_restarted_peer_refuses_another_key_at_its_bootstrap_address(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_of_four(tmp_path) as running:
            known = KnownPeers(tmp_path / "known-peers")
            impostor = Transport(SEEDS[1])
            host, port = await impostor.listen("127.0.0.1", 0, lambda _: None)
            known.remember(f"{host}:{port}", KEYS[SEEDS[2]].peer_id)

            def check(address: str, peer: bytes) -> None:
                check_key(known, address, peer, print)

            running.node.spawn(running.bootstrap(f"{host}:{port}", None, check))
            error = await failure(running)
            await impostor.close()
            assert isinstance(error, SwarmError) and "another key than before" in error.what

    asyncio.run(story())
