"""Peers of one network find each other by multicast DNS: the real library, on loopback."""

import asyncio
import json
from collections.abc import Callable

import pytest

from peerformer.interface.cli import main
from peerformer.node.lan import CHAIN, FOUND_MAX, PEER, SWARM, Lan, LanPeer, meet_on_lan

CHAIN_ID, OTHER_CHAIN = b"\x0a" * 32, b"\x0b" * 32
LOOPBACK = ("127.0.0.1",)


def peer(number: int, chain_id: bytes = CHAIN_ID, swarm: str = "dusk") -> LanPeer:
    return LanPeer(swarm, chain_id, bytes([number]) * 32, (f"127.0.0.1:{8_000 + number}",))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


def test_peers_of_one_chain_find_and_dial_each_other_and_leave_others_alone() -> None:
    async def story() -> None:
        dialled: dict[int, set[LanPeer]] = {1: set(), 2: set(), 3: set()}
        chains = {1: CHAIN_ID, 2: CHAIN_ID, 3: OTHER_CHAIN}
        lans = {number: Lan(LOOPBACK) for number in chains}
        tasks = []
        for number, chain_id in chains.items():
            await lans[number].open()

            async def dial(other: LanPeer, number: int = number) -> bool:
                dialled[number].add(other)
                return True

            mine = peer(number, chain_id)
            tasks.append(
                asyncio.ensure_future(meet_on_lan(lans[number], mine, lambda _: True, dial))
            )
        await until(lambda: len(lans[1].found) == len(lans[2].found) == 3)
        await until(lambda: bool(dialled[1] and dialled[2]))
        assert dialled == {1: {peer(2)}, 2: {peer(1)}, 3: set()}
        tasks[1].cancel()  # it says goodbye
        await until(lambda: len(lans[1].found) == 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("what", "properties", "hosts", "port"),
    [
        ("no chain", {PEER: b"02" * 32}, ["127.0.0.1"], 1),
        ("a short key", {CHAIN: b"01" * 32, PEER: b"02" * 31}, ["127.0.0.1"], 1),
        ("no hex", {CHAIN: b"zz" * 32, PEER: b"02" * 32}, ["127.0.0.1"], 1),
        ("an absent value", {CHAIN: None, PEER: b"02" * 32}, ["127.0.0.1"], 1),
        ("a place on the internet", {CHAIN: b"01" * 32, PEER: b"02" * 32}, ["45.83.4.7"], 1),
        ("no port", {CHAIN: b"01" * 32, PEER: b"02" * 32}, ["127.0.0.1"], None),
    ],
)
def test_what_says_nothing_of_use_is_left_out(
    what: str, properties: dict, hosts: list[str], port: int | None
) -> None:
    assert LanPeer.read(properties, hosts, port) is None, what


def test_a_name_that_would_play_with_the_terminal_is_made_plain_and_short() -> None:
    told = {CHAIN: b"01" * 32, PEER: b"02" * 32, SWARM: b"\x1b[2Jdusk" + b"x" * 300}
    found = LanPeer.read(told, ["192.168.1.7", "45.83.4.7", "fe80::1%eth0"], 8_888)
    assert found is not None and found.swarm.startswith("[2Jdusk") and len(found.swarm) == 64
    assert found.addresses == ("192.168.1.7:8888", "[fe80::1%eth0]:8888")


def test_a_flood_of_announcements_is_kept_to_a_number() -> None:
    async def story() -> None:
        lan = Lan(LOOPBACK)
        await lan.open()
        lan.found = {str(number): peer(1) for number in range(FOUND_MAX)}

        class Change:
            name = "Added"

        lan._on_change(None, "_peerformer._tcp.local.", "one more", Change)
        assert not lan._tasks and len(lan.found) == FOUND_MAX
        await lan.close()

    asyncio.run(story())


def test_the_command_lists_a_swarm_that_announces_itself_and_how_to_join_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def listed(*more: str) -> str:
        assert main(["lan", "--host", "127.0.0.1", "--seconds", "2", *more]) == 0
        return capsys.readouterr().out

    async def story() -> str:
        lan = Lan(LOOPBACK)
        await lan.open()
        await lan.announce(peer(1))
        told = await asyncio.to_thread(listed, "--json")
        await lan.close()
        return told

    (swarm,) = json.loads(asyncio.run(story()))["swarms"]
    assert swarm["name"] == "dusk" and swarm["chain_id"] == CHAIN_ID.hex()
    assert swarm["peers"] == [{"peer_id": peer(1).peer.hex(), "addresses": ["127.0.0.1:8001"]}]
    assert main(["lan", "--seconds", "0"]) == 2
