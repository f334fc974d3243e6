"""Scripted stories: a danger in plain words, what happens, and what must come of it.

A story is a text file. Its first line, after `#`, names the danger. Steps stand above `----`, what
is then expected below; after a line `then` more steps follow, and so on. Every expectation is
looked up where it stands; beside them the world's own invariants hold at every event. Peers are
numbered as their keys are sorted, so that, while all attest, peer (round + view) mod peers leads.
Times are in virtual seconds; a story replays exactly. In the forms below PEERS is `0,2`, `all` or
`nobody`, SIDES is `0,1 | 2,3`, KINDS is one KIND or several, as in `prepare,commit`; what stands in
brackets may be left out.

First who takes part:
    peers N                             N founders (4 if not given)
    spares N                            N more, which are no members and are down
    adversary PEER LIES                 this peer lies; the lies of `byzantine` joined by `+`
    lie to PEERS                        who hears the other story (another half each round)
    seed N                              another draw of delays and lies (1 if not given)
    audits N                            of 1,000 contributions are repeated by others (none)
    too many liars                      more than f: a fork is no breach of what was promised

What happens; a KIND is contribution, attestation, proposal, prepare, commit or timeout:
    round N                             run until all honest peers that are up decided round N
    round N by PEERS                    run until these did
    run SECONDS s                       let time pass
    until PEERS said KIND in round N [view N]   all of these, honest ones
    until PEER is in view N             of its open round
    until PEER is locked                on a quorum of prepares
    split SIDES                         nothing passes between the sides
    oneway PEER -> PEER                 words pass from the first to the second, not back
    heal                                lift all splits and one-way links
    crash PEERS                         now: what they stored stays
    crash PEER before storing KIND      at its next statement of that kind; likewise:
    crash PEER before sending KIND      it is stored, and nobody has heard it
    crash PEER amid KIND                one peer has heard it
    crash PEER after KIND               all have been told
    boot PEERS                          start from their disks, with room on them
    join PEERS                          start spares, which ask to be admitted
    join PEERS on an invitation of PEER to the newest round that this peer decided
    join PEERS on an invitation to another chain
    leave PEER                          tell it to leave
    sleep PEER SECONDS s                nothing runs on it for so long
    clock PEER SECONDS s                its clock jumps ahead
    tear PEER                           it dies, and its disk cannot be read any more
    fill PEER                           its disk takes nothing any more
    hold KINDS from PEERS to PEERS [in round N] [view N]
    lose KINDS from PEERS to PEERS [in round N] [view N]
    release                             lift what holds and loses, deliver what was held
    release KINDS                       of these kinds only
Packets that are no statements may be held too: lock (a quorum of prepares), ending (a quorum of
timeouts), decision (certified headers), header, request (joins, leaves, evidence), blob, state.

What is expected; KIND as above, WORDS to the end of the line:
    decided round N by PEERS
    not decided round N [by PEERS]      by nobody honest, or by none of these
    view of round N is N                the view in which it was decided
    view of round N is at most N
    built round N by PEER               whose header it is, whoever led in the end
    accepted in round N: PEERS          exactly these contributions; `nobody` is a null round
    refused PEER [in round N]: WORDS    its contribution, and why
    nobody refused
    evicted PEER: WORDS                 by all, on evidence that begins with these words
    nobody evicted
    banned PEER                         its key may never join again
    members PEERS                       of the open round
    voters PEERS
    quarantined PEER                    its contributions get no slot for a while
    in good standing PEER               a member, not quarantined
    locked PEERS view N                 in their open round
    unlocked PEERS
    in view PEERS view N                in their open round
    leads PEER in round N view N        of the open round
    said PEER KIND in round N [view N]  of honest peers only; likewise:
    never said PEER KIND in round N [view N]
    blamed PEER by PEERS: WORDS         they noticed it sending what is false
    same state PEERS                    the agreed one byte for byte, at most one round old
    caught up PEER                      at most one round behind, its state installed
    begins PEER after round N           its chain; 0 is the genesis
    awaits its checkpoint PEER: WORDS   it has no chain yet, and says why
    fetched state PEER                  proven chunk by chunk, at some time
    retired PEER                        its key must not vote any more
    down PEERS
    stopped PEERS                       they saw two certificates for one round
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peerformer.byzantine import ATTACKS
from peerformer.errors import ConfigError
from peerformer.malformed import MALFORMED
from peerformer.simulate.expectations import EXPECTATIONS
from peerformer.simulate.invariants import Violation
from peerformer.simulate.stage import PARCELS, STATEMENTS, Stage
from peerformer.simulate.steps import STEPS
from peerformer.simulate.toy import IDLE, ToyReplicas
from peerformer.simulate.world import LIMITS, World

PEERS_MAX = 13
BELOW, AGAIN = "----", "then"
LIES = (*ATTACKS, *IDLE, *MALFORMED, "poison")
TRAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Cast:
    """Who takes part."""

    peers: int = 4
    spares: int = 0
    seed: int = 1
    audit_permille: int = 0
    liars: tuple[tuple[int, tuple[str, ...]], ...] = ()
    victims: tuple[int, ...] | None = None
    too_many: bool = False

    @property
    def size(self) -> int:
        """All of them."""
        return self.peers + self.spares


CAST: dict[str, Callable[..., Cast]] = {
    "peers N": lambda cast, number: replace(cast, peers=number),
    "spares N": lambda cast, number: replace(cast, spares=number),
    "adversary PEER LIES": lambda cast, peer, lies: replace(
        cast, liars=(*cast.liars, (peer, lies))
    ),
    "lie to PEERS": lambda cast, peers: replace(cast, victims=peers),
    "seed N": lambda cast, number: replace(cast, seed=number),
    "audits N": lambda cast, number: replace(cast, audit_permille=number),
    "too many liars": lambda cast: replace(cast, too_many=True),
}
FORMS: tuple[Mapping[str, Callable[..., Any]], ...] = (CAST, STEPS, EXPECTATIONS)
PLACES = {
    "PEER": r"(\d+)",
    "PEERS": r"(\d+(?:,\d+)*|all|nobody)",
    "N": r"(\d+)",
    "SECONDS": r"(\d+(?:\.\d+)?)",
    "KIND": r"([a-z]+)",
    "KINDS": r"([a-z]+(?:,[a-z]+)*)",
    "LIES": r"([a-z+-]+)",
    "WORDS": r"(.+)",
    "SIDES": r"(\d+(?:,\d+)*(?: \| \d+(?:,\d+)*)+)",
}
PLACE = re.compile(r"\b[A-Z]+\b")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a story, understood."""

    number: int
    text: str
    act: Callable[..., str | None]
    arguments: tuple[Any, ...]
    expects: bool


@dataclass(frozen=True, slots=True)
class Story:
    """A story that can be told."""

    danger: str
    cast: Cast
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """How one line went: `fault` is what was found instead, None if it went as written."""

    line: int
    text: str
    fault: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a story went, and the world it left."""

    findings: tuple[Finding, ...]
    world: World

    @property
    def holds(self) -> bool:
        """Whether all went as written."""
        return all(finding.fault is None for finding in self.findings)


# --- reading -----------------------------------------------------------------------------------


def read(path: Path) -> Story:
    """Read a story from a file; raises ConfigError."""
    try:
        return parse(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the story cannot be read", where=str(path), why=str(error)) from error


def parse(text: str, name: str) -> Story:
    """Understand a story; raises ConfigError, which names the file and the line."""
    written = text.splitlines()
    if not written or not written[0].startswith("# "):
        raise ConfigError("the first line of a story names its danger, after '# '", where=name)
    cast, expects = Cast(), False
    lines: list[Line] = []
    for number, raw in enumerate(written, 1):
        line, where = " ".join(raw.partition("#")[0].split()), f"{name}:{number}"
        if line in (BELOW, AGAIN):
            if expects is (line == BELOW):
                raise ConfigError(f"'{line}' where it cannot stand", where=where)
            expects = not expects
        elif line:
            kind = EXPECTATIONS if expects else STEPS
            act, given = _understand(line, kind if lines or expects else CAST | STEPS, where)
            arguments = tuple(_meaning(place, word, cast, where) for place, word in given)
            if act in CAST.values():
                cast = act(cast, *arguments)
            else:
                lines.append(Line(number, line, act, arguments, expects))
    if not any(line.expects for line in lines):
        raise ConfigError("a story expects something, below '----'", where=name)
    _check_cast(cast, name)
    return Story(written[0][2:].strip(), cast, tuple(lines))


def _understand(
    line: str, forms: Mapping[str, Callable[..., Any]], where: str
) -> tuple[Callable[..., Any], list[tuple[str, str | None]]]:
    for form, act in forms.items():
        match = pattern(form).fullmatch(line)
        if match:
            return act, list(zip(PLACE.findall(form), match.groups(), strict=True))
    known = [form for form in forms if form.split()[0] == line.split()[0]]
    hint = "; ".join(known) if known else ", ".join(sorted({f.split()[0] for f in forms}))
    raise ConfigError(f"a story knows no {line!r} here", where=where, hint=hint)


def pattern(form: str) -> re.Pattern[str]:
    """Return what a line of a form looks like."""
    plain = re.escape(form).replace(r"\ \[", r"(?:\ ").replace(r"\]", ")?")
    return re.compile(PLACE.sub(lambda match: PLACES[match[0]], plain))


def _meaning(place: str, word: str | None, cast: Cast, where: str) -> Any:
    """Return what a word stands for; None where it was left out."""
    if word is None:
        return None
    match place:
        case "N":
            return int(word)
        case "SECONDS":
            return float(word)
        case "PEER":
            return _peers(word, cast, where)[0]
        case "PEERS":
            return _peers(word, cast, where)
        case "SIDES":
            return tuple(_peers(side, cast, where) for side in word.split(" | "))
        case "KIND":
            return _known((word,), STATEMENTS, where)[0]
        case "KINDS":
            return _known(tuple(word.split(",")), PARCELS, where)
        case "LIES":
            return _known(tuple(word.split("+")), LIES, where)
    return word


def _peers(word: str, cast: Cast, where: str) -> tuple[int, ...]:
    if word in ("all", "nobody"):
        return tuple(range(cast.size)) if word == "all" else ()
    peers = tuple(map(int, word.split(",")))
    if max(peers) >= cast.size:
        raise ConfigError(f"there is no peer {max(peers)} of {cast.size}", where=where)
    return peers


def _known(words: tuple[str, ...], known: tuple[str, ...], where: str) -> tuple[str, ...]:
    for word in words:
        if word not in known:
            raise ConfigError(f"a story knows no {word!r}", where=where, hint=", ".join(known))
    return words


def _check_cast(cast: Cast, name: str) -> None:
    if not 1 <= cast.peers <= PEERS_MAX or cast.size > PEERS_MAX:
        raise ConfigError(f"a story has 1 to {PEERS_MAX} peers", where=name)
    liars = [peer for peer, _ in cast.liars]
    if len(set(liars)) < len(liars):
        raise ConfigError("a peer lies on one line; join its lies by '+'", where=name)


# --- telling -----------------------------------------------------------------------------------


def play(story: Story) -> Verdict:
    """Run a story and look up what it expects; it ends early where a step cannot be done."""
    world = _world(story.cast)
    stage = Stage(world)
    findings: list[Finding] = []
    for line in story.lines:
        try:
            fault = line.act(stage, *line.arguments)
        except Violation as violation:
            fault = f"{violation.invariant}: {violation.what}"
        findings.append(Finding(line.number, line.text, fault))
        if fault is not None and not line.expects:
            break
    return Verdict(tuple(findings), world)


def _world(cast: Cast) -> World:
    world = World(
        cast.seed,
        cast.peers,
        attacks=dict(cast.liars),
        spares=cast.spares,
        limits=replace(LIMITS, audit_permille=cast.audit_permille),
        replicas=ToyReplicas(audited=cast.audit_permille > 0),
        sorted_ids=True,
    )
    world.invariants.promised = not cast.too_many
    if cast.victims is not None:
        world.plot.victims = frozenset(world.hosts[victim].me for victim in cast.victims)
    world.works.train_seconds = lambda _: TRAIN_SECONDS + world.random.random() / 10
    for index in range(cast.peers):
        world.boot(index)
    return world
