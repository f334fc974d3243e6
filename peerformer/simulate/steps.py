"""What may happen in a scripted story, by the words that stories use for it.

Each step acts on the stage; it returns why it could not be done, or None. The words are listed with
their meaning in `scenario`.
"""

from collections.abc import Callable

from peerformer.protocol.checkpoint import Checkpoint, newest_checkpoint
from peerformer.protocol.effects import Command
from peerformer.protocol.identity import hash_of
from peerformer.simulate.stage import Cue, Hold, Stage

Peers = tuple[int, ...]
PATIENCE_SECONDS = 300.0  # of virtual time; no round of a story takes as long


def decide(stage: Stage, number: int, peers: Peers | None) -> str | None:
    """Run until a round is decided by these peers, or by all honest ones that are up."""

    def decided() -> bool:
        watched = [h.index for h in stage.running()] if peers is None else list(peers)
        return bool(watched) and all(stage.world.tip(index) >= number for index in watched)

    if stage.world.run(seconds=PATIENCE_SECONDS, until=decided):
        return None
    tips = ", ".join(f"{h.index}: {stage.world.tip(h.index)}" for h in stage.world.hosts)
    return f"not decided after {PATIENCE_SECONDS:.0f} s; newest rounds: {tips}"


def run(stage: Stage, seconds: float) -> None:
    """Let time pass."""
    stage.world.run(seconds=seconds)


def await_statements(
    stage: Stage, peers: Peers, kind: str, number: int, view: int | None
) -> str | None:
    """Run until these honest peers have said something in a round, and view if given."""
    said = stage.world.invariants.said
    waiting = {stage.world.hosts[peer].me for peer in peers}

    def all_said() -> bool:
        heard = {
            sender
            for sender, slot in said
            if slot[:2] == (kind, number) and view in (None, slot[2])
        }
        return waiting <= heard

    if stage.world.run(seconds=PATIENCE_SECONDS, until=all_said):
        return None
    return f"not all said it within {PATIENCE_SECONDS:.0f} s"


def await_view(stage: Stage, peer: int, view: int) -> str | None:
    """Run until a peer is in a view of its open round."""

    def there() -> bool:
        machine = stage.machine(peer)
        return machine is not None and machine.ballot.consensus.view == view

    if stage.world.run(seconds=PATIENCE_SECONDS, until=there):
        return None
    return f"{peer} did not come to view {view} within {PATIENCE_SECONDS:.0f} s"


def await_lock(stage: Stage, peer: int) -> str | None:
    """Run until a peer is locked in its open round."""

    def locked() -> bool:
        machine = stage.machine(peer)
        return machine is not None and machine.ballot.consensus.high is not None

    if stage.world.run(seconds=PATIENCE_SECONDS, until=locked):
        return None
    return f"{peer} was not locked within {PATIENCE_SECONDS:.0f} s"


def split(stage: Stage, sides: tuple[Peers, ...]) -> None:
    """Let nothing pass between the sides."""
    for index, side in enumerate(sides):
        for other in sides[index + 1 :]:
            stage.world.network.split(set(side), set(other))


def one_way(stage: Stage, peer: int, other: int) -> None:
    """Let words pass from one peer to another, and not back."""
    stage.world.network.split({other}, {peer}, both_ways=False)


def crash(stage: Stage, peers: Peers) -> None:
    """Kill peers now: what they stored stays, all else is gone."""
    for peer in peers:
        stage.world.crash(peer)


def boot(stage: Stage, peers: Peers) -> None:
    """Start peers from their disks."""
    for peer in peers:
        stage.world.hosts[peer].disk.full = False  # whoever starts it again has made room
        stage.world.boot(peer)


def join_from(stage: Stage, peers: Peers, inviter: int) -> str | None:
    """Start spares with an invitation of a peer to the newest round that it decided."""
    machine = stage.machine(inviter)
    if machine is None or not machine.chain.tip:
        return "it has decided no round that it could name"
    for peer in peers:
        stage.world.hosts[peer].checkpoint = newest_checkpoint(machine.chain)
    boot(stage, peers)
    return None


def join_elsewhere(stage: Stage, peers: Peers) -> None:
    """Start spares with an invitation to the newest round of another chain."""
    for peer in peers:
        members_hash = hash_of("members of another chain")
        elsewhere = Checkpoint(stage.tip(), hash_of("header of another chain"), members_hash)
        stage.world.hosts[peer].checkpoint = elsewhere
    boot(stage, peers)


def tear(stage: Stage, peer: int) -> None:
    """Kill a peer and make its disk unreadable."""
    stage.world.crash(peer)
    stage.world.hosts[peer].disk.torn = True


def fill(stage: Stage, peer: int) -> None:
    """Leave no room on a peer's disk."""
    stage.world.hosts[peer].disk.full = True


def on_cue(moment: str) -> Callable[[Stage, int, str], None]:
    """Return the step that kills a peer at a moment of its next statement of a kind."""

    def plan(stage: Stage, peer: int, kind: str) -> None:
        stage.cues[peer] = Cue(kind, moment)

    return plan


def holding(*, loses: bool) -> Callable[..., None]:
    """Return the step that lets some packets not pass."""

    def hold(
        stage: Stage,
        kinds: tuple[str, ...],
        sources: Peers,
        targets: Peers,
        number: int | None,
        view: int | None,
    ) -> None:
        stage.holds.append(Hold(kinds, sources, targets, number, view, loses))

    return hold


STEPS: dict[str, Callable[..., str | None]] = {
    "round N": lambda stage, number: decide(stage, number, None),
    "round N by PEERS": decide,
    "run SECONDS s": run,
    "until PEERS said KIND in round N [view N]": await_statements,
    "until PEER is in view N": await_view,
    "until PEER is locked": await_lock,
    "split SIDES": split,
    "oneway PEER -> PEER": one_way,
    "heal": lambda stage: stage.world.network.join(),
    "crash PEERS": crash,
    "crash PEER before storing KIND": on_cue("before storing"),
    "crash PEER before sending KIND": on_cue("before sending"),
    "crash PEER amid KIND": on_cue("amid"),
    "crash PEER after KIND": on_cue("after"),
    "boot PEERS": boot,
    "join PEERS": boot,
    "join PEERS on an invitation of PEER": join_from,
    "join PEERS on an invitation to another chain": join_elsewhere,
    "leave PEER": lambda stage, peer: stage.world.command(peer, Command("leave")),
    "sleep PEER SECONDS s": lambda stage, peer, seconds: stage.world.freeze(peer, seconds),
    "clock PEER SECONDS s": lambda stage, peer, seconds: stage.world.freeze(
        peer, 0.0, clock_jump=seconds
    ),
    "tear PEER": tear,
    "fill PEER": fill,
    "hold KINDS from PEERS to PEERS [in round N] [view N]": holding(loses=False),
    "lose KINDS from PEERS to PEERS [in round N] [view N]": holding(loses=True),
    "release": lambda stage: stage.release(),
    "release KINDS": lambda stage, kinds: stage.release(kinds),
}
