"""A running peer among strangers that send what no honest one sends: it goes on, and says so."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from peerformer import events
from peerformer.journal import read_journal
from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import SwarmDirectory
from peerformer.node.founding import found, limits_of
from peerformer.node.keyring import save_key
from peerformer.node.known_round import KnownBench, known_genesis, known_node, meet
from peerformer.node.limits import FRAME_COST_BYTES
from peerformer.node.process import Running
from peerformer.node.transport import Connection, ConnectionClosed, Transport
from peerformer.protocol.conduct import Exhibit
from peerformer.protocol.effects import TimerFired
from peerformer.protocol.identity import KeyPair, blob_hash
from peerformer.protocol.messages import (
    PROTOCOL_VERSION,
    AskPeers,
    Hello,
    Prepare,
    Said,
    pack,
    sign,
)
from peerformer.settings import resolve

SEED, STRANGER = b"\x01" * 32, b"\x02" * 32
SMALL = {
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_dim": 16,
    "model.max_positions": 32,
    "data.path": "synthetic:1",
    "data.vocab_size": 300,
    "training.sequence_length": 32,
    "training.batch_size": 2,
    "swarm.inner_steps": 2,
    "swarm.peers": 1,
}


@asynccontextmanager
async def one_peer(path: Path) -> AsyncIterator[Running]:
    """A swarm of one, running in this process."""
    swarm = SwarmDirectory(path / "swarm")
    found(swarm, resolve(size="nano", overrides=SMALL).config, [SEED])
    directory = swarm.peer("me").make()
    save_key(directory.key, SEED)
    running = Running(swarm, directory, PeerOptions(threads=1, validates=False))
    await running.start()
    try:
        yield running
    finally:
        running.node.stop("the test is over")
        await running.run_until_stopped()


async def rounds_later(running: Running, more: int) -> None:
    """Wait until so many more rounds are decided."""
    chain = running.peer.machine.chain
    goal = chain.tip + more
    async with asyncio.timeout(60):
        while chain.tip < goal:
            assert not running.node.stopped.done()
            await asyncio.sleep(0.02)


async def dial(running: Running) -> tuple[Transport, Connection]:
    """Connect as a stranger with a key of its own."""
    transport = Transport(STRANGER)
    connection = await transport.dial(running.parts.address, expect=running.peer.machine.me)
    return transport, connection


def reasons(running: Running) -> list[str]:
    """What the journal says of misbehaviour."""
    journal = read_journal(running.directory.journal)
    return [event.reason for event in journal if isinstance(event, events.Misbehaved)]


HOSTILE = {
    "noise": lambda _: [b"\xff" * 100, b"", b"\x00", bytes(range(256))],
    "a truncated message": lambda chain: [pack(Hello(PROTOCOL_VERSION, chain, 0, None))[:-3]],
    "a message before the greeting": lambda _: [pack(AskPeers(3))],
    "a forged vote": lambda chain: [
        pack(Hello(PROTOCOL_VERSION, chain, 0, None)),
        pack(Said(sign(KeyPair.from_seed(STRANGER), b"\x09" * 32, Prepare(1, 0, bytes(32))))),
    ],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_frames_are_counted_and_stop_nothing(what: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with one_peer(tmp_path) as running:
            await rounds_later(running, 1)
            transport, connection = await dial(running)
            for frame in HOSTILE[what](running.peer.machine.chain.chain_id):
                connection.send(frame)
            await rounds_later(running, 3)
            await transport.close()
            if what != "a forged vote":  # votes of strangers for past rounds are only ignored
                assert reasons(running), what

    asyncio.run(story())


def test_a_contribution_is_fetched_and_judged_as_evidence_and_one_that_is_gone_is_not(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with one_peer(tmp_path) as running:
            await rounds_later(running, 1)
            machine, garbage = running.peer.machine, b"\xff" * 50
            number, author = machine.chain.tip + 1, KeyPair.from_seed(STRANGER).peer_id
            key = blob_hash(machine.chain.chain_id, number, author, [garbage])
            running.node.blobs.put(key, garbage, durable=False)
            held = Exhibit(number, author, key, len(garbage))
            gone = Exhibit(number, author, bytes(32), len(garbage))
            other = Exhibit(number, machine.me, key, len(garbage))  # keyed for another author
            for exhibit in (gone, other, held):
                machine.trials.inspect(exhibit, ())
            running.node.post(TimerFired("tick"))  # carries out what was ordered
            async with asyncio.timeout(30):
                while held not in machine.trials.verdicts:
                    await asyncio.sleep(0.02)
            assert machine.trials.verdicts[held] is False
            assert gone not in machine.trials.verdicts and other not in machine.trials.verdicts
            await rounds_later(running, 2)

    asyncio.run(story())


@pytest.mark.parametrize("hello", ["of another chain", "of another version"])
def test_whoever_does_not_belong_is_sent_away(hello: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with one_peer(tmp_path) as running:
            transport, connection = await dial(running)
            chain_id = running.peer.machine.chain.chain_id
            other = hello == "of another chain"
            version = PROTOCOL_VERSION if other else PROTOCOL_VERSION + 1
            connection.send(pack(Hello(version, bytes(32) if other else chain_id, 0, None)))
            with pytest.raises(ConnectionClosed):
                async with asyncio.timeout(20):
                    while True:
                        await connection.receive()
            await transport.close()
            await rounds_later(running, 2)

    asyncio.run(story())


def test_a_flood_of_false_input_closes_the_connection(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_peer(tmp_path) as running:
            transport, connection = await dial(running)
            for _ in range(200):
                connection.send(b"\xff\xff")
            with pytest.raises(ConnectionClosed):
                async with asyncio.timeout(20):
                    while True:
                        await connection.receive()
            await transport.close()
            assert len(reasons(running)) < 20  # told at powers of two, not two hundred times
            await rounds_later(running, 2)

    asyncio.run(story())


def test_a_training_that_blows_up_is_not_sent(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_peer(tmp_path) as running:
            await rounds_later(running, 4)
            replica = running.parts.bench.replica
            before = replica.norms
            contribution = replica._contribute(
                replica.round + 1, replica.feedback.residual_P + 1e6, tokens=1
            )
            assert contribution is None and replica.norms == before
            nan = replica._contribute(
                replica.round + 1, replica.feedback.residual_P * math.nan, tokens=1
            )
            assert nan is None
            await rounds_later(running, 2)

    asyncio.run(story())


def test_a_flood_of_a_stranger_is_let_in_slowly(tmp_path: Path) -> None:
    """What is old news is no fault, so only its pace can be limited."""

    async def story() -> None:
        async with one_peer(tmp_path) as running:
            await rounds_later(running, 2)
            chain_id, node = running.peer.machine.chain.chain_id, running.node
            taken, loop = 0, asyncio.get_running_loop()

            def count(*_: object) -> None:
                nonlocal taken
                taken += 1

            node.on_frame = count
            transport, connection = await dial(running)
            connection.send(pack(Hello(PROTOCOL_VERSION, chain_id, 0, None)))
            old = pack(Said(sign(KeyPair.from_seed(STRANGER), chain_id, Prepare(1, 0, bytes(32)))))
            began, until = loop.time(), running.peer.machine.chain.tip + 3
            while running.peer.machine.chain.tip < until:
                for _ in range(100):
                    connection.send(old)
                await asyncio.sleep(0.01)
            budget = node.transport.budget.strangers
            assert budget.bytes_per_second is not None
            frames_max = (loop.time() - began) * budget.bytes_per_second / FRAME_COST_BYTES
            assert 0 < taken <= frames_max + 64  # at once, after a pause
            assert node.connections[KeyPair.from_seed(STRANGER).peer_id].waits_its_turn
            await transport.close()

    asyncio.run(story())


def test_members_do_not_wait_with_strangers(tmp_path: Path) -> None:
    async def story() -> None:
        config, seeds = resolve(size="nano").config, (SEED, STRANGER)
        genesis, first = known_genesis(config, limits_of(config), list(seeds))
        benches = [KnownBench(config, first) for _ in seeds]
        nodes = [
            await known_node(tmp_path, genesis, seed, bench, lambda *_: None, "127.0.0.1")
            for seed, bench in zip(seeds, benches, strict=True)
        ]
        try:
            await meet(nodes)
            connections = [one for node in nodes for one in node.connections.values()]
            assert {one.inbound for one in connections} == {True, False}
            assert not any(one.waits_its_turn for one in connections)
        finally:
            for node in nodes:
                await node.close()

    asyncio.run(story())
