"""Who stays: the members that found a new chain, named by an operator who alone can know it.

No header tells who is gone for good. So whoever names nobody is shown all members, with the round
that each attested last and until when this peer was connected to it.
"""

from collections.abc import Sequence
from pathlib import Path

from peerformer import events
from peerformer.errors import ConfigError, DataError
from peerformer.journal import read_journal
from peerformer.protocol.chain import Chain
from peerformer.protocol.identity import name_of
from peerformer.protocol.membership import GUEST, ROLE_WORDS, Member, Members, peers_of

ID_DIGITS_MIN = 8


def chosen_members(members: Members, words: Sequence[str]) -> tuple[Member, ...]:
    """Return the members that are named, by name or by the first digits of their id.

    Raises:
        ConfigError: if one is no member, or a guest, or not the only one of that name.
    """
    found = {member.peer: member for member in (_member(members, word) for word in words)}
    return tuple(found[peer] for peer in sorted(found))


def _member(members: Members, word: str) -> Member:
    fitting = [member for member in members.members if _is_meant(member.peer, word)]
    if len(fitting) > 1:
        raise ConfigError(
            f"{word} names several members",
            why=", ".join(member.peer.hex() for member in fitting),
            hint=f"give the first digits of an id, {ID_DIGITS_MIN} at least",
        )
    if fitting and fitting[0].role == GUEST:
        raise ConfigError(
            f"{word} is a guest, and a guest founds no chain",
            hint="leave it out; it joins the new chain with --bootstrap",
        )
    if fitting:
        return fitting[0]
    if any(_is_meant(peer, word) for peer in members.banned):
        raise ConfigError(f"{word} was evicted from the old chain", hint="leave it out")
    left = any(_is_meant(entry.peer, word) for entry in members.departed)
    raise ConfigError(
        f"{word} has left the old chain" if left else f"no member is called {word!r:.80}",
        why="the members are: " + ", ".join(name_of(member.peer) for member in members.members),
    )


def _is_meant(peer: bytes, word: str) -> bool:
    by_id = len(word) >= ID_DIGITS_MIN and peer.hex().startswith(word.lower())
    return by_id or name_of(peer) == word


def not_chosen(chain: Chain, run: Path, journal: Path, me: bytes) -> ConfigError:
    """Return the error that shows an operator who could stay, with a line to copy."""
    able = [name_of(member.peer) for member in chain.members.members if member.role != GUEST]
    return ConfigError(
        "it is not said who stays",
        where=f"{run}, after round {chain.tip}",
        why="\n       ".join(("the members are", *_told(chain, journal, me))),
        hint=f"peerformer recover {run} --with {','.join(able)}   less those gone for good",
    )


def _told(chain: Chain, journal: Path, me: bytes) -> list[str]:
    """Return a line about each member: what it did last, and until when it was connected to me."""
    attested = {
        peer: number
        for number, members in chain.past_members.items()
        if (item := chain.item(number)) is not None
        for peer in peers_of(members.voters, item.header.attesters) or ()
    }
    seen = last_seen(journal)
    lines = []
    for member in chain.members.members:
        number, until = attested.get(member.peer), seen.get(member.peer.hex())
        did = f"attested last in round {number}" if number else "attested nothing lately"
        met = f"connected until {until}" if until else "never connected"
        met = "whose store this is" if member.peer == me else met
        lines.append(f"{name_of(member.peer):<18} {ROLE_WORDS[member.role]:<9} {did}, {met}")
    return lines


def last_seen(journal: Path) -> dict[str, str]:
    """Return by peer id until when a peer was connected to others, as far as its journal tells."""
    seen: dict[str, str] = {}
    connected: set[str] = set()
    now = ""
    try:
        for event in read_journal(journal):
            if isinstance(event, events.NodeStarted | events.NodeStopped):
                seen |= dict.fromkeys(connected, now)
                connected.clear()
            now = event.time
            if isinstance(event, events.PeerConnected):
                connected.add(event.peer)
            elif isinstance(event, events.PeerDisconnected) and event.peer in connected:
                connected.discard(event.peer)
                seen[event.peer] = now
    except DataError:
        return seen  # a help to remember by: nothing rests on it
    return seen | dict.fromkeys(connected, now)
