"""Addresses: what is one, where one is listened, and how the first that answers is found."""

import asyncio
import socket
from collections.abc import Callable

import pytest

from peerformer.errors import SwarmError
from peerformer.node.dialling import STAGGER_SECONDS, DialError, first_of, joined, parted
from peerformer.node.listening import open_listeners, source_of, told_addresses
from peerformer.node.transport import Connection, Transport
from tests.node.virtual_time import run_in_no_time


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


def test_addresses_are_taken_apart_and_put_together() -> None:
    for text in ("127.0.0.1:8888", "[::1]:8888", "[fe80::1%eth0]:1", "peer.example.org:65535"):
        assert joined(*parted(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "a", "a:", ":1", "::1:8888", "[::1]", "[a]:1", "a:0", "a:65536", "a:-1", "a:1x", "a:²"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(DialError):
        parted(text)


class Attempts:
    """Attempts that answer or fail after so many seconds, and who was discarded."""

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}
        self.discarded: list[str] = []

    def make(self, name: str, seconds: float, fault: str | None = None) -> Callable:
        async def attempt() -> str:
            self.begun[name] = asyncio.get_running_loop().time()
            await asyncio.sleep(seconds)
            if fault:
                raise DialError(fault)
            return name

        return attempt

    async def first(self, *attempts: Callable) -> str:
        return await first_of(attempts, self.discarded.append)


def test_an_address_that_leads_nowhere_costs_a_quarter_of_a_second() -> None:
    async def story() -> None:
        tries, loop = Attempts(), asyncio.get_running_loop()
        found = await tries.first(tries.make("dead", 1e9), tries.make("good", 0.01))
        assert found == "good" and loop.time() == pytest.approx(STAGGER_SECONDS + 0.01)

    run_in_no_time(story())


def test_a_failure_begins_the_next_attempt_at_once_and_a_quick_first_is_alone() -> None:
    async def story() -> None:
        tries = Attempts()
        found = await tries.first(
            tries.make("refused", 0.01, "refused"), tries.make("b", 0.1), tries.make("c", 0)
        )
        assert found == "b" and tries.begun == {"refused": 0.0, "b": pytest.approx(0.01)}

    run_in_no_time(story())


def test_of_two_that_answer_at_once_one_is_discarded() -> None:
    async def story() -> None:
        tries = Attempts()
        found = await tries.first(
            tries.make("a", 2 * STAGGER_SECONDS), tries.make("b", STAGGER_SECONDS)
        )
        assert sorted([found, *tries.discarded]) == ["a", "b"]

    run_in_no_time(story())


def test_all_reasons_are_told_when_all_fail() -> None:
    async def story() -> None:
        tries = Attempts()
        with pytest.raises(DialError, match="refused; unreachable"):
            await tries.first(
                tries.make("a", 0, "refused"),
                tries.make("b", 0, "unreachable"),
                tries.make("c", 0, "refused"),
            )
        with pytest.raises(DialError, match="no address"):
            await tries.first()

    run_in_no_time(story())


def meet(hosts: list[str], dial: Callable[[int], list[str]]) -> str:
    """Listen, dial what `dial` makes of the port, exchange a frame; returns the dialled address."""

    async def story() -> str:
        server, client = Transport(b"\x01" * 32), Transport(b"\x02" * 32)
        arrived: asyncio.Queue[Connection] = asyncio.Queue()
        _, port = await server.listen(hosts, 0, arrived.put_nowait)
        assert len({port for _, port in server.listening}) == 1
        dialled = await client.dial(dial(port), expect=server.peer_id)
        dialled.send(b"hello")
        assert await (await arrived.get()).receive() == b"hello"
        await client.close()
        await server.close()
        return dialled.address

    return asyncio.run(story())


@needs_ipv6
def test_peers_meet_over_ipv6() -> None:
    assert meet(["::1"], lambda port: [f"[::1]:{port}"]).startswith("[::1]:")


@needs_ipv6
def test_both_families_are_listened_at_one_port_by_wildcards() -> None:
    both = ["0.0.0.0", "::"]
    assert meet(both, lambda port: [f"127.0.0.1:{port}"]).startswith("127.0.0.1:")
    assert meet(both, lambda port: [f"[::1]:{port}"]).startswith("[::1]:")


def test_a_name_is_reached_at_whichever_of_its_addresses_listens() -> None:
    meant = {found[4][0] for found in socket.getaddrinfo("localhost", 1, type=socket.SOCK_STREAM)}
    for host in meant:
        assert meet([host], lambda port: [f"localhost:{port}"])


def test_of_several_addresses_the_one_where_the_meant_peer_is_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        elsewhere = f"127.0.0.1:{silent.getsockname()[1]}"
        found = meet(
            ["127.0.0.1"], lambda port: [elsewhere, "no-such.invalid:1", f"127.0.0.1:{port}"]
        )
    assert found.startswith("127.0.0.1:") and found != elsewhere


def test_wildcards_are_told_as_the_addresses_of_the_interfaces() -> None:
    told = told_addresses([("0.0.0.0", 8888), ("::", 8888), ("127.0.0.1", 1)])
    assert told and not any(text.startswith(("0.0.0.0", "[::]")) for text in told)
    assert told[-1] == "127.0.0.1:1" and all(parted(text) for text in told)


def test_a_port_that_is_taken_at_the_second_host_is_told_and_the_first_is_let_go() -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SwarmError, match="127.0.0.2"):
            open_listeners(["127.0.0.1", "127.0.0.2"], port)
        (listener,) = open_listeners(["127.0.0.1"], port)
        listener.close()


def test_an_address_of_another_machine_is_told_with_what_would_do() -> None:
    with pytest.raises(SwarmError) as caught:
        open_listeners(["192.0.2.1"], 0)
    assert caught.value.hint and "0.0.0.0" in caught.value.hint


def test_one_ipv6_host_is_one_source_however_many_addresses_it_takes() -> None:
    assert source_of("2001:db8::1") == source_of("2001:db8::ffff:1")
    assert source_of("2001:db8::1") != source_of("2001:db8:0:1::1")
    assert source_of("192.0.2.1") != source_of("192.0.2.2")
