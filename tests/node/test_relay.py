"""Peers that nobody can dial meet through a relay: it sees ciphertext, consents, and has limits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from peerformer.node.blobs import BlobStore
from peerformer.node.limits import RelayLimits, TransportLimits
from peerformer.node.registration import Registration
from peerformer.node.relay import ANSWER, DAY_SECONDS, READY, Quota, QuotaSpent, Relay
from peerformer.node.transport import (
    Connection,
    ConnectionClosed,
    DialError,
    FetchError,
    Streams,
    Transport,
)
from peerformer.protocol.addresses import relayed_address
from tests.node.test_transport import run

RELAY, CALLED, CALLER = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
KEY = b"\x07" * 32
LIMITS = TransportLimits(handshake_seconds_max=3.0, close_seconds_max=0.5)
QUOTA = RelayLimits(bytes_per_second_max=1e9)
__all__ = ["run"]


class Listened:
    """A stream whose reader also tells what was read: what the relay sees."""

    def __init__(self, reader: asyncio.StreamReader, seen: bytearray) -> None:
        self.reader, self.seen = reader, seen

    async def read(self, size: int) -> bytes:
        data = await self.reader.read(size)
        self.seen += data
        return data


class OpenRelay(Relay):
    """A relay whose operator is curious, or lets anybody come for a call."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.seen = bytearray()
        self.lets_anybody_come = False

    async def _answer(self, peer: bytes, streams: Streams) -> None:
        for call in self._calls.values():
            call.peer = peer if self.lets_anybody_come else call.peer
        await super()._answer(peer, streams)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await super()._pass_on(Listened(reader, self.seen), writer)


class Three:
    """A public peer that relays, one that waits there, and one that calls: both only dial."""

    def __init__(self, quota: RelayLimits) -> None:
        self.public = Transport(RELAY, limits=LIMITS)
        self.called, self.caller = (Transport(seed, limits=LIMITS) for seed in (CALLED, CALLER))
        self.relay = OpenRelay(self.public.budget, quota, lambda _: True)
        self.public.services |= self.relay.services
        self.arrived: asyncio.Queue[Connection] = asyncio.Queue()
        self.called.take_in(self.arrived.put_nowait)
        self.place = ""

    async def register(self) -> Registration:
        registration = await Registration.make(self.called, self.place, self.public.peer_id)
        self.called.spawn(registration.keep())
        return registration

    async def connect(self) -> tuple[Connection, Connection]:
        """Both ends of a relayed connection, the caller's first."""
        address = relayed_address(self.place, self.called.peer_id)
        dialled = await self.caller.dial(address, expect=self.called.peer_id)
        return dialled, await self.arrived.get()


@asynccontextmanager
async def three(quota: RelayLimits = QUOTA) -> AsyncIterator[Three]:
    all_three = Three(quota)
    host, port = await all_three.public.listen("127.0.0.1", 0, lambda _: None)
    all_three.place = f"{host}:{port}"
    yield all_three
    for transport in (all_three.caller, all_three.called, all_three.public):
        await transport.close()


def test_two_peers_that_only_dial_out_meet_and_know_each_other_by_their_keys(run) -> None:
    async def story() -> None:
        async with three() as all_three:
            registration = await all_three.register()
            dialled, accepted = await all_three.connect()
            assert dialled.peer_id == all_three.called.peer_id and not dialled.inbound
            assert accepted.peer_id == all_three.caller.peer_id and accepted.inbound
            assert dialled.relayed and accepted.relayed
            assert dialled.address == registration.address
            frames = [bytes([number]) * 30_000 for number in range(20)]
            for frame in frames:
                assert dialled.send(frame) and accepted.send(frame)
            assert [await accepted.receive() for _ in frames] == frames
            assert [await dialled.receive() for _ in frames] == frames

    run(story())


def test_the_relay_sees_only_ciphertext_of_messages_and_blobs(run, tmp_path: Path) -> None:
    async def story() -> None:
        async with three() as all_three:
            registration = await all_three.register()
            secret, data = b"a gradient nobody else may read " * 32, b"0123456789abcdef" * 65_536
            dialled, accepted = await all_three.connect()
            dialled.send(secret)
            assert await accepted.receive() == secret
            accepted.send(secret)
            assert await dialled.receive() == secret
            all_three.called.store = BlobStore(tmp_path, bytes_max=1 << 24)
            all_three.called.store.put(KEY, data, durable=False)
            all_three.called.may_fetch = lambda peer: peer == all_three.caller.peer_id
            into = bytearray(len(data))
            await all_three.caller.fetch(
                registration.address,
                all_three.called.peer_id,
                KEY,
                memoryview(into),
                deadline_seconds=20,
                rate_min_bytes_per_second=1e4,
            )
            assert into == data
            seen = bytes(all_three.relay.seen)
            assert len(seen) > len(data) + 2 * len(secret)
            assert b"gradient" not in seen and b"0123456789" not in seen
            assert all_three.relay.bytes_passed == len(seen)

    run(story())


def test_a_relay_that_puts_itself_between_the_two_is_found_out(run) -> None:
    """It answers calls for another peer with its own TLS: the key is not the one meant."""

    async def story() -> None:
        async with three() as all_three:
            impostor = Transport(b"\x09" * 32, limits=LIMITS)
            registration = await Registration.make(
                impostor, all_three.place, all_three.public.peer_id
            )
            impostor.spawn(registration.keep())
            relay = all_three.relay  # it passes calls for the one on to the other
            relay.lets_anybody_come = True
            relay.registered[all_three.called.peer_id] = relay.registered[impostor.peer_id]
            with pytest.raises(DialError, match="another key"):
                await all_three.connect()
            address = relayed_address(all_three.place, all_three.called.peer_id)
            with pytest.raises(DialError, match="another key"):  # the address names it, too
                await all_three.caller.dial(address, expect=None)
            await impostor.close()

    run(story())


def test_nobody_comes_for_a_call_in_anothers_place_even_with_its_token(run) -> None:
    async def story() -> None:
        async with three(replace(QUOTA, call_seconds_max=0.5)) as all_three:
            registration = await Registration.make(  # and never comes
                all_three.called, all_three.place, all_three.public.peer_id
            )
            calling = asyncio.ensure_future(all_three.connect())
            while not all_three.relay._calls:
                await asyncio.sleep(0.01)
            (token,) = all_three.relay._calls
            thief = Transport(b"\x09" * 32, limits=LIMITS)
            line = await thief.open(all_three.place, ANSWER, all_three.public.peer_id)
            line.writer.write(token + READY)
            with pytest.raises(DialError, match="does not have that peer"):
                await calling
            registration.end()
            await thief.close()

    run(story())


def test_without_consent_or_for_a_peer_that_is_not_there_a_call_is_refused(run) -> None:
    async def story() -> None:
        async with three() as all_three:
            with pytest.raises(DialError, match="does not have that peer"):
                await all_three.connect()
            unwilling = Transport(b"\x05" * 32, limits=LIMITS)
            host, port = await unwilling.listen("127.0.0.1", 0, lambda _: None)
            all_three.place = f"{host}:{port}"
            with pytest.raises(DialError):
                await all_three.register()
            with pytest.raises(DialError):
                await all_three.connect()
            await unwilling.close()

    run(story())


def test_strangers_may_not_register_and_a_full_relay_says_so(run) -> None:
    async def story() -> None:
        async with three(replace(QUOTA, registered_max=0)) as all_three:
            with pytest.raises(DialError, match="full"):
                await all_three.register()
            all_three.relay._is_welcome = lambda _: False
            with pytest.raises(DialError, match="its own swarm"):
                await all_three.register()
        async with three(replace(QUOTA, flows_per_peer_max=1)) as all_three:
            await all_three.register()
            await all_three.connect()
            with pytest.raises(DialError, match="full"):
                await all_three.connect()

    run(story())


def test_a_flow_ends_cleanly_when_the_quota_of_the_day_is_spent(run) -> None:
    async def story() -> None:
        async with three(replace(QUOTA, bytes_per_day_max=200_000)) as all_three:
            await all_three.register()
            dialled, accepted = await all_three.connect()
            for _ in range(10):
                dialled.send(b"x" * 60_000)
            whole = 0
            with pytest.raises(ConnectionClosed):
                while await accepted.receive() == b"x" * 60_000:
                    whole += 1
            assert 1 <= whole <= 3
            with pytest.raises(ConnectionClosed):
                await dialled.receive()
            assert all_three.relay.bytes_passed <= 200_000 + 2 * 16_384
            with pytest.raises(DialError, match="grants a day"):
                await all_three.connect()
            while all_three.relay.flows:
                await asyncio.sleep(0.01)

    run(story())


def test_the_quota_begins_anew_with_the_day() -> None:
    quota = Quota(1_000)
    quota.use(1_000, 5.0)
    with pytest.raises(QuotaSpent):
        quota.use(1, DAY_SECONDS)
    assert quota.left(5.0 + DAY_SECONDS)
    quota.use(1, 5.0 + DAY_SECONDS)


def test_an_end_of_either_side_ends_the_other_and_frees_the_flow(run) -> None:
    async def story() -> None:
        async with three() as all_three:
            await all_three.register()
            for first in (0, 1):
                ends = await all_three.connect()
                await ends[first].close("done")
                with pytest.raises(ConnectionClosed):
                    await ends[1 - first].receive()
            while all_three.relay.flows:
                await asyncio.sleep(0.01)
            registration = await all_three.register()  # in place of the first
            assert len(all_three.relay.registered) == 1
            registration.end()
            while all_three.relay.registered:
                await asyncio.sleep(0.01)

    run(story())


def test_a_relay_that_dies_ends_the_registration_and_all_that_it_carries(run) -> None:
    async def story() -> None:
        async with three() as all_three:
            registration = await Registration.make(
                all_three.called, all_three.place, all_three.public.peer_id
            )
            kept = asyncio.ensure_future(registration.keep())
            dialled, accepted = await all_three.connect()
            await all_three.public.close()
            await kept
            for end in (dialled, accepted):
                with pytest.raises(ConnectionClosed):
                    await end.receive()
            with pytest.raises(FetchError, match="closed"):
                await all_three.caller.fetch(
                    registration.address,
                    all_three.called.peer_id,
                    KEY,
                    memoryview(bytearray(1)),
                    deadline_seconds=5,
                    rate_min_bytes_per_second=1,
                )

    run(story())
