"""What a peer finds out and tells about where it is reached."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from peerformer.node.dialling import parted
from peerformer.node.iroh_carrier import Iroh
from peerformer.node.limits import RelayLimits
from peerformer.node.probing import Prober, is_reached_from
from peerformer.node.reach import Reach
from peerformer.node.reachability import Reachability
from peerformer.node.relay import Relay
from peerformer.node.transport import Connection, DialError, Transport
from peerformer.protocol.addresses import offered_relay, through_iroh, through_relay
from peerformer.protocol.messages import ADDRESSES_MAX

ME, OTHER, THIRD = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32


def reachability(
    transport: Transport, reach: Reach, connections: dict[bytes, Connection], **more: object
) -> Reachability:
    relays: Callable[[bytes], tuple[str, ...]] = more.pop("relays_of", lambda _: ())
    changed: Callable = more.pop("on_change", lambda _: None)
    return Reachability(
        transport, reach, lambda: connections, relays_of=relays, on_change=changed, **more
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_dial_back_tells_whether_the_asker_itself_is_reached_there() -> None:
    async def story() -> None:
        me, other, third = (Transport(seed) for seed in (ME, OTHER, THIRD))
        _, mine = await me.listen("127.0.0.1", 0, lambda _: None)
        _, port = await other.listen("127.0.0.1", 0, lambda _: None)
        _, thirds = await third.listen("127.0.0.1", 0, lambda _: None)

        async def ask(dialled_back: int) -> bool:
            other.services |= Prober(other).services  # one that has forgotten whom it answered
            return await is_reached_from(me, f"127.0.0.1:{port}", other.peer_id, dialled_back)

        assert await ask(mine) is True
        assert await ask(1) is False
        assert await ask(thirds) is False  # somebody is there, and it is not me
        with pytest.raises(DialError):  # and not again at once from the same address
            await is_reached_from(me, f"127.0.0.1:{port}", other.peer_id, mine)
        for transport in (me, other, third):
            await transport.close()

    asyncio.run(story())


@pytest.mark.parametrize("open_to_all", [True, False])
def test_a_peer_learns_from_those_it_dialled_whether_it_needs_a_relay(open_to_all: bool) -> None:
    async def story() -> None:
        me, other = Transport(ME), Transport(OTHER)
        _, port = await other.listen("127.0.0.1", 0, lambda _: None)
        other.services |= Prober(other).services
        relay = Relay(other.budget, RelayLimits(), lambda _: True)
        other.services |= relay.services
        await me.listen("0.0.0.0", 0, lambda _: None)
        if not open_to_all:  # a router that lets nobody in
            for listener in me._listeners:
                listener.close()
        connections: dict[bytes, Connection] = {}
        told: list[tuple[str, ...]] = []
        found = reachability(
            me,
            Reach(),
            connections,
            relays_of=lambda _: (f"127.0.0.1:{port}",),
            on_change=told.append,
        )
        me.spawn(found.run())
        assert not found.needs_relay
        connections[other.peer_id] = await me.dial(f"127.0.0.1:{port}", expect=None)
        found._probe_at = 0.0
        await until(lambda: found.reachable is not None)
        assert found.reachable is open_to_all
        if not open_to_all:
            await until(lambda: bool(told))
            assert [through_relay(address) for address in told[-1]][-1] == (
                f"127.0.0.1:{port}",
                me.peer_id,
            )
            registered_at = list(found.registrations.values())
            registered_at[0].end()
            await until(lambda: len(told) >= 2)  # the loss is told too
            assert not any(map(through_relay, told[1]))
        await me.close()
        await other.close()

    asyncio.run(story())


def test_what_is_told_is_bounded_and_loopback_is_not_told_from_behind_a_router() -> None:
    async def story() -> None:
        me = Transport(ME)
        await me.listen("127.0.0.1", 0, lambda _: None)
        forwarded = tuple(f"peer-{number}.example.org:8888" for number in range(12))
        relay = Relay(me.budget, RelayLimits(), lambda _: True)
        found = reachability(me, Reach(announced=forwarded), {}, relay=relay)
        assert len(found.addresses()) == ADDRESSES_MAX
        assert found.addresses()[0] == forwarded[0] and all(
            parted(offered_relay(address) or address) for address in found.addresses()
        )
        assert [offered_relay(a) for a in found.addresses()[-2:]] == list(forwarded[:2])
        hidden = reachability(me, Reach(behind_nat=True), {})
        assert hidden.addresses() == () and hidden.needs_relay
        await me.close()

    asyncio.run(story())


def test_a_relay_whose_day_is_spent_offers_nothing() -> None:
    async def story() -> None:
        me = Transport(ME)
        await me.listen("127.0.0.1", 0, lambda _: None)
        relay = Relay(me.budget, replace(RelayLimits(), bytes_per_day_max=1.0), lambda _: True)
        found = reachability(me, Reach(), {}, relay=relay)
        assert any(map(offered_relay, found.addresses()))
        relay.quota.use(1, asyncio.get_running_loop().time())
        assert not any(map(offered_relay, found.addresses()))
        await me.close()

    asyncio.run(story())


def test_a_peer_with_iroh_tells_where_and_whoever_lacks_it_is_told_what_to_do() -> None:
    async def story() -> None:
        me, other, plain = (Transport(seed) for seed in (ME, OTHER, THIRD))
        arrived: asyncio.Queue[Connection] = asyncio.Queue()
        bound = await me.listen("127.0.0.1", 0, arrived.put_nowait)
        iroh = await Iroh.open(me, ME, bound, None)
        await Iroh.open(other, OTHER, ("127.0.0.1", 0), None)
        direct, by_iroh = reachability(me, Reach(), {}, iroh=iroh).addresses()
        assert through_iroh(by_iroh) == (direct, me.peer_id)  # the same number, by UDP
        dialled = await other.dial(by_iroh, expect=None)
        assert dialled.peer_id == me.peer_id
        dialled.send(b"hello")
        assert await (await arrived.get()).receive() == b"hello"
        with pytest.raises(DialError, match="--iroh"):
            await plain.dial(by_iroh, expect=me.peer_id)
        for nonsense in ("iroh:", f"iroh:nowhere/{plain.peer_id.hex()}", "iroh:127.0.0.1:1/12"):
            with pytest.raises(DialError):
                await other.dial(nonsense, expect=None)
        for transport in (other, plain, me):
            await transport.close()

    asyncio.run(story())
