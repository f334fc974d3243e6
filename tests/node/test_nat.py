"""Two peers behind real routers, in network namespaces of the test's own making.

Each home has the same private network, 192.168.1.0/24, behind a router that translates addresses
(nftables, masquerade): nobody gets in who was not asked. Nothing leaves the machine.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from peerformer.protocol.identity import KeyPair
from tests.node.nat_peer import PORT, SEEDS

ROOT = Path(__file__).resolve().parents[2]
WORLD, PUBLIC = "10.77.0.1", f"10.77.0.1:{PORT}"
CALLED = KeyPair.from_seed(SEEDS["called"]).peer_id


def missing() -> str | None:
    """What this machine lacks for it."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    return next((f"there is no {tool}" for tool in ("ip", "nft") if not shutil.which(tool)), None)


def sh(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


@contextmanager
def homes() -> Iterator[dict[str, str]]:
    """A world with a bridge, and two homes behind routers; the names of the namespaces by role."""
    mark = f"pf{os.getpid() % 100_000}"
    names = {role: f"{mark}{role}" for role in ("world", "router1", "router2", "home1", "home2")}
    try:
        for name in names.values():
            sh("ip", "netns", "add", name)
            sh("ip", "-n", name, "link", "set", "lo", "up")
        world = names["world"]
        sh("ip", "-n", world, "link", "add", "bridge", "type", "bridge")
        sh("ip", "-n", world, "addr", "add", f"{WORLD}/24", "dev", "bridge")
        sh("ip", "-n", world, "link", "set", "bridge", "up")
        for number in (1, 2):
            connect(names, number)
        yield names
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def connect(names: dict[str, str], number: int) -> None:
    """Put a router between the world and a home, that lets only answers in."""
    world, router, home = names["world"], names[f"router{number}"], names[f"home{number}"]
    port = f"port{number}"
    sh(
        "ip",
        "-n",
        world,
        "link",
        "add",
        port,
        "type",
        "veth",
        "peer",
        "name",
        "wan",
        "netns",
        router,
    )
    sh("ip", "-n", world, "link", "set", port, "master", "bridge", "up")
    sh("ip", "-n", router, "addr", "add", f"10.77.0.1{number}/24", "dev", "wan")
    sh("ip", "-n", router, "link", "set", "wan", "up")
    sh(
        "ip",
        "-n",
        router,
        "link",
        "add",
        "lan",
        "type",
        "veth",
        "peer",
        "name",
        "eth",
        "netns",
        home,
    )
    sh("ip", "-n", router, "addr", "add", "192.168.1.1/24", "dev", "lan")
    sh("ip", "-n", router, "link", "set", "lan", "up")
    sh("ip", "-n", home, "addr", "add", "192.168.1.2/24", "dev", "eth")
    sh("ip", "-n", home, "link", "set", "eth", "up")
    sh("ip", "-n", home, "route", "add", "default", "via", "192.168.1.1")
    inside = ("ip", "netns", "exec", router)
    sh(*inside, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    sh(*inside, "nft", "add", "table", "ip", "nat")
    sh(*inside, "nft", "add chain ip nat out { type nat hook postrouting priority 100 ; }")
    sh(*inside, "nft", "add", "rule", "ip", "nat", "out", "oifname", "wan", "masquerade")


@contextmanager
def peer(namespace: str, role: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run one end of the story there until the block ends."""
    command = [sys.executable, "-m", "tests.node.nat_peer", role, PUBLIC, *(words or ("",))]
    with subprocess.Popen(
        ["ip", "netns", "exec", namespace, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.skipif(missing() is not None, reason=missing() or "")
def test_two_peers_behind_routers_find_out_and_meet_through_a_public_peer() -> None:
    with homes() as names, ExitStack() as running:
        public = running.enter_context(peer(names["world"], "public"))
        assert line(public) == "up"
        called = running.enter_context(peer(names["home1"], "called"))
        # It serves a peer that cannot dial it, on a connection of its own, without a relay.
        assert line(public) == "fetched, with 0 bytes relayed"
        told = line(called).split()
        relayed = f"relay:{PUBLIC}/{CALLED.hex()}"
        assert told == ["reachable", "False", "at", f"192.168.1.2:{PORT}", relayed]
        # The first of these addresses is the caller's own: somebody else answers there.
        caller = running.enter_context(peer(names["home2"], "caller", CALLED.hex(), *told[3:]))
        assert line(caller) == f"talked and fetched at {relayed}"
