"""Becoming able to join: from one address to the genesis and the files it names.

The newcomer learns the key of whoever answers at the address (trust on first use, remembered), or
knows it from its ticket; exchanges greetings, shows its ticket to whoever gave it, asks for the
genesis, and fetches what the genesis names by hash. After this it is a peer like any other, only
not a member yet. What cannot work is refused here, before anything large is fetched.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from peerformer.config import DataConfig
from peerformer.data.origins import documents_of
from peerformer.data.tally import Tally
from peerformer.errors import SwarmError
from peerformer.node.blobs import BlobStore
from peerformer.node.certificate import Group
from peerformer.node.directory import PeerDirectory, SwarmDirectory, write_durably
from peerformer.node.examining import CLOCK_SECONDS_MAX
from peerformer.node.fetching import Fetcher
from peerformer.node.founding import file_hash
from peerformer.node.kept_tickets import keep_tickets
from peerformer.node.keyring import KnownPeers
from peerformer.node.standing import CLOCK_CURE, refused_ticket
from peerformer.node.transport import Connection, ConnectionClosed, DialError, Transport
from peerformer.node.versions import other_version, sent_away, software_of
from peerformer.protocol.codec import MalformedError, encode
from peerformer.protocol.genesis import ADMISSION_CLOSED, ADMISSION_OPEN, Genesis
from peerformer.protocol.identity import name_of
from peerformer.protocol.invitations import NO_VOTER, WELCOME
from peerformer.protocol.messages import (
    NO_HASH,
    PROTOCOL_VERSION,
    Hello,
    Packet,
    greeting_version,
    pack,
    unpack,
)
from peerformer.protocol.newcomer_packets import (
    About,
    AskAbout,
    AskGenesis,
    Farewell,
    GenesisBytes,
    Present,
    Presented,
    ReachedBack,
)
from peerformer.protocol.ticket import Ticket, span

ANSWER_SECONDS_MAX = 20.0
FAREWELL_SECONDS_MAX = 3.0

P = TypeVar("P", bound=Packet)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a ticket says of the peer at an address: its key and its chain."""

    peer: bytes
    chain_id: bytes
    tickets: tuple[Ticket, ...] = ()


@dataclass(slots=True)
class Talk:
    """What a newcomer asks on one connection; each answer is awaited, all else passed over."""

    me: bytes
    connection: Connection
    where: str
    clock_behind_seconds: float | None = None
    software: str | None = None
    seen_at: str = ""
    round_trip_seconds: float = 0.0
    packets: list[Packet] = field(default_factory=list)  # came while something else was awaited

    async def ask(self, packet: Packet, answer: type[P], what: str) -> P:
        """Send a packet and wait for its answer.

        Raises:
            SwarmError: if there is none in time, or the peer is of another version or swarm.
            EvictedError: if it says that this key was evicted.
        """
        self.connection.send(pack(packet))
        return await self.wait(answer, what)

    async def wait(self, answer: type[P], what: str, seconds: float = ANSWER_SECONDS_MAX) -> P:
        """Wait for a packet of this kind; raises as `ask` does."""
        for kept in self.packets:
            if isinstance(kept, answer):
                self.packets.remove(kept)
                return kept
        try:
            async with asyncio.timeout(seconds):
                while True:
                    packet = await self._next()
                    if isinstance(packet, answer):
                        return packet
                    if isinstance(packet, ReachedBack) and not self.packets:
                        self.packets.append(packet)  # it comes when it comes
        except (TimeoutError, ConnectionClosed) as error:
            raise SwarmError(
                f"the peer at {self.where} did not give {what}",
                why=str(error) or f"no answer within {seconds:.0f} seconds",
                hint="try the address of another peer",
            ) from error

    async def _next(self) -> Packet | None:
        """Return the next packet, None for one that I cannot read."""
        frame = await self.connection.receive()
        version = greeting_version(frame)
        if version is not None and version != PROTOCOL_VERSION:
            raise await self._of_other_version(version)
        try:
            packet = unpack(frame)
        except MalformedError:
            return None  # a newer peer may say more than I understand
        if isinstance(packet, Farewell):
            raise sent_away(self.me, packet, f"{name_of(self.connection.peer_id)} at {self.where}")
        return packet

    async def _of_other_version(self, version: int) -> SwarmError:
        """Greet, for the farewell that names the software to install."""
        self.connection.send(pack(Hello(PROTOCOL_VERSION, NO_HASH, 0, None)))
        who, software = f"the peer at {self.where}", None
        try:
            async with asyncio.timeout(FAREWELL_SECONDS_MAX):
                while True:
                    packet = unpack(await self.connection.receive())
                    if isinstance(packet, Farewell):
                        software = software_of(packet.software)
                        break
        except (TimeoutError, ConnectionClosed, MalformedError):
            pass  # then without
        return other_version(who, version, software)

    async def genesis(self) -> Genesis:
        """Ask for the genesis."""
        given = await self.ask(AskGenesis(0), GenesisBytes, "a genesis")
        try:
            return Genesis.from_bytes(given.data)
        except MalformedError as error:
            raise SwarmError(
                f"the peer at {self.where} did not give a genesis",
                why=str(error),
                hint="try the address of another peer",
            ) from error

    async def greet(self, chain_id: bytes, port: int = 0) -> None:
        """Greet, and learn what the peer says of itself, or why it sends me away."""
        self.connection.send(pack(Hello(PROTOCOL_VERSION, chain_id, 0, None)))
        asked, began = time.time(), asyncio.get_running_loop().time()
        about = await self.ask(AskAbout(port), About, "an answer to the greeting")
        self.round_trip_seconds = asyncio.get_running_loop().time() - began
        between = asked + self.round_trip_seconds / 2
        self.clock_behind_seconds = about.time_milliseconds / 1_000 - between
        self.software = software_of(about.software)
        self.seen_at = about.seen_at.decode("ascii", "replace")

    async def show(self, ticket: Ticket, *, only_ask: bool) -> Presented:
        """Show a ticket to the inviter, who must be at the other end."""
        assert ticket.inviter == self.connection.peer_id
        shown = Present(encode(ticket), only_ask)
        return await self.ask(shown, Presented, "an answer to its own ticket")


def check_text(data: DataConfig) -> None:
    """Raise DataError if there is nothing to read, before anything is fetched for a peer."""
    next(iter(documents_of(data, Tally())), None)


async def port_is_free(seed: bytes, host: str | tuple[str, ...], port: int) -> None:
    """Raise SwarmError if nobody can listen there, before anything is fetched for a peer."""
    transport = Transport(seed)
    try:
        await transport.listen(host, port, lambda _: None)
    finally:
        await transport.close()


async def fetch_swarm(
    swarm: SwarmDirectory,
    seed: bytes,
    address: str,
    note: Callable[[str], None],
    expected: Expected | None = None,
    group: Group | None = None,
) -> None:
    """Fetch the genesis and its files from the peer at `address`.

    Raises:
        SwarmError: if nobody answers there, its key has changed, it is of another swarm or version,
        lets nobody in, or does not give what it should.
        ConfigError: if it gave the ticket that is shown, and does not honour it.
        EvictedError: if it says that this key was evicted.
    """
    swarm.path.mkdir(parents=True, exist_ok=True)
    transport = Transport(seed, group=group)
    try:
        connection = await transport.dial(address, expect=expected.peer if expected else None)
    except DialError as error:
        await transport.close()
        raise SwarmError(
            f"no peer can be reached at {address}",
            why=reason_of(error),
            hint="check the address, and that the peer is running",
        ) from error
    try:
        if expected is None:
            known = KnownPeers(swarm.path.parent / "known-peers")
            check_key(known, address, connection.peer_id, note)
        talk = Talk(transport.peer_id, connection, address)
        genesis = await talk.genesis()
        if expected is not None and genesis.chain_id != expected.chain_id:
            raise SwarmError(
                f"the peer at {address} is of another swarm than the ticket",
                hint="ask for a new ticket: peerformer invite",
            )
        await _introduce(talk, genesis, expected.tickets if expected else None, note)
        await _fetch_files(swarm, transport, connection.peer_id, address, genesis)
        write_durably(swarm.genesis_file, genesis.to_bytes())
        chain = genesis.chain_id.hex()[:16]
        note(f"joining     swarm {genesis.name.decode(errors='replace')}, chain {chain}")
    finally:
        await transport.close()


async def fetch_invited(
    swarm: SwarmDirectory,
    directory: PeerDirectory,
    seed: bytes,
    tickets: Sequence[Ticket],
    note: Callable[[str], None],
    group: Group | None = None,
) -> None:
    """Fetch the genesis and its files from the first place in a ticket that gives them.

    Nothing is fetched that is here. The tickets, all of one swarm, are kept with the peer, which
    shows them until it is a member.

    Raises:
        SwarmError: if none does: which were tried, and why each failed.
        ConfigError, EvictedError: as `fetch_swarm` does.
    """
    invitation, failures = tickets[0].invitation, list[tuple[str, SwarmError]]()
    for place in invitation.places:
        if swarm.genesis_file.exists():
            break
        address = place.address.decode()
        expected = Expected(place.peer, invitation.chain_id, tuple(tickets))
        try:
            await fetch_swarm(swarm, seed, address, note, expected, group)
        except SwarmError as error:
            failures.append((f"{name_of(place.peer)} at {address}", error))
    if not swarm.genesis_file.exists():
        raise _nowhere(failures)
    keep_tickets(directory, tickets)


def _nowhere(failures: list[tuple[str, SwarmError]]) -> SwarmError:
    """Return in one failure what those of all places say."""
    if len(failures) == 1:
        return failures[0][1]
    lines = [
        f"\n    {where}: {error.what}" + (f" ({error.why})" if error.why else "")
        for where, error in failures
    ]
    return SwarmError(
        f"none of the {len(failures)} addresses in this ticket leads into its swarm",
        why="".join(lines) or "it names no address",
        hint="look at the network here, or ask for a new ticket: peerformer invite",
    )


async def _introduce(
    talk: Talk, genesis: Genesis, tickets: Iterable[Ticket] | None, note: Callable[[str], None]
) -> None:
    """Greet, and be told now what would keep this peer out later."""
    await talk.greet(genesis.chain_id)
    off = talk.clock_behind_seconds or 0.0
    if abs(off) > CLOCK_SECONDS_MAX:
        side = "behind" if off > 0 else "ahead of"
        note(f"clock       {span(abs(off))} {side} that of {talk.where}; {CLOCK_CURE}")
    admission = genesis.limits.admission
    if any(founder.peer == talk.me for founder in genesis.founders) or admission == ADMISSION_OPEN:
        return
    if admission == ADMISSION_CLOSED:
        raise SwarmError(
            "nobody can join this swarm: its founders are all its members, for good",
            where=talk.where,
            hint="found another one: peerformer init NAME --admission invite",
        )
    if tickets is None:
        raise SwarmError(
            "this swarm admits by invitation only",
            where=talk.where,
            hint="ask a member for a ticket (peerformer invite), then: peerformer join TICKET",
        )
    for ticket in tickets:
        if ticket.inviter == talk.connection.peer_id:
            answer = (await talk.show(ticket, only_ask=False)).answer
            if answer not in (WELCOME, NO_VOTER):
                raise refused_ticket(ticket.inviter, answer)
            note(f"ticket      shown to {name_of(ticket.inviter)}")


async def _fetch_files(
    swarm: SwarmDirectory, transport: Transport, peer: bytes, address: str, genesis: Genesis
) -> None:
    store = BlobStore(swarm.path / "fetched", bytes_max=1 << 30)
    fetcher = Fetcher(transport, store, genesis.chain_id, lambda _: (address,), lambda *_: None)
    for what, key, size, path in (
        ("tokenizer", genesis.tokenizer_hash, genesis.tokenizer_size, swarm.tokenizer),
        ("held-out set", genesis.validation_hash, genesis.validation_size, swarm.validation),
    ):
        data = await fetcher.file(key, size, (peer,), file_hash)
        if data is None:
            raise SwarmError(
                f"{name_of(peer)} did not give the swarm's {what}",
                where=address,
                hint="try the address of another peer",
            )
        write_durably(path, data)


def check_key(known: KnownPeers, address: str, peer: bytes, note: Callable[[str], None]) -> None:
    """Remember the key that answers at an address first, and refuse another one later.

    Raises:
        SwarmError: if it is another one.
    """
    match known.check(address, peer):
        case "changed":
            raise SwarmError(
                f"the peer at {address} shows another key than before",
                why=f"now {name_of(peer)} ({peer.hex()[:16]}…): a new installation, or an impostor",
                hint=f"ask its owner; if that is right, take {address} out of {known.path}",
            )
        case "new":
            known.remember(address, peer)
            note(
                f"first use   {address} is {name_of(peer)}, key {peer.hex()}; "
                "it is remembered, compare it with its owner"
            )


def reason_of(error: DialError) -> str:
    """Return in words why a peer could not be reached."""
    text = str(error)
    return "no answer in time" if text in ("", "TimeoutError") else text
