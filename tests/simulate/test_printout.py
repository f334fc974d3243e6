"""A machine is its print-out: a world whose machines are printed and restored goes on the same."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import product, zip_longest
from random import Random

from peerformer.protocol.discovery import secret_of
from peerformer.protocol.effects import Effect, Event
from peerformer.protocol.machine import Machine
from peerformer.protocol.printout import from_text, to_text
from peerformer.simulate.host import Host
from peerformer.simulate.plan import Plan
from peerformer.simulate.troubles import Troubled
from peerformer.simulate.world import World

MOMENTS_AT_LEAST = {"any": 400, "view change": 20, "collection": 20, "fetching a state": 5}
SHARE_RESTORED, SHARE_RESTORED_IF_RARE = 0.015, 0.4
RARE = {"view change", "fetching a state", "behind", "packets kept", "before the start"}
PLANS = (
    Plan("mixed", peers=4, trouble_seconds=20.0),
    Plan("churn", peers=5, trouble_seconds=20.0),
    Plan("mixed", (("no-reproposal", "double-vote", "amnesia"),), 4, trouble_seconds=20.0),
)


class Recorder:
    """Notes a digest of everything that any machine of a world is told and asks for."""

    def __init__(self, world: World, *, restores: bool) -> None:
        """Watch a world; before some of the events the machine concerned is restored."""
        self.world, self.restores = world, restores
        self.random = Random(f"restore {world.seed}")  # the world's own numbers stay as they are
        self.story: list[tuple[float, int, str]] = []
        self.moments: Counter[str] = Counter()
        self._effects = world._effects
        world._effects = self.effects  # type: ignore[method-assign]

    def effects(self, host: Host, event: Event) -> list[Effect]:
        if self.restores and host.machine is not None:
            moments = moments_of(host.machine)
            rare = not RARE.isdisjoint(moments)
            if self.random.random() < (SHARE_RESTORED_IF_RARE if rare else SHARE_RESTORED):
                self.restore(host)
                self.moments.update(moments)
        effects = self._effects(host, event)
        said = hashlib.sha256(repr((event, effects)).encode()).hexdigest()
        self.story.append((self.world.now, host.index, said))
        return effects

    def restore(self, host: Host) -> None:
        machine = host.machine
        assert machine is not None and host.peer is not None
        text = to_text(machine)
        restored = from_text(text, seed=host.seed, unpack=self.world._unpack)
        assert to_text(restored) == text
        no_secret_is_in(text, host, self.world)
        host.peer.machine = restored
        if hasattr(host.peer, "peer"):  # the machine of a liar
            host.peer.peer.machine = restored


def moments_of(machine: Machine) -> list[str]:
    """In the middle of what a machine is."""
    current, consensus = machine.collection, machine.ballot.consensus
    met = {
        "any": True,
        "view change": consensus.view > 0 or bool(machine.ballot.timeouts),
        "lock": consensus.high is not None,
        "training": machine.training.ordered > machine.chain.tip and not current.trained,
        "collection": current.revealed and not current.attested,
        "fetching a state": machine.sync.fetching is not None,
        "behind": not machine.sync.ready,
        "packets kept": bool(machine.later),
        "an operation waits": bool(machine.requests.operations),
        "before the start": bool(machine._records),
    }
    return [name for name, is_so in met.items() if is_so]


def no_secret_is_in(text: str, host: Host, world: World) -> None:
    """Neither keys nor the book's secret, nor a link of the hash chain before it was revealed."""
    machine = host.machine
    assert machine is not None
    revealed = {item.header.reveal for item in machine.chain.items}
    revealed |= {body.header.reveal for body in machine.ballot.headers.bodies.values()}
    known = {link for link in host.chain.links if link in revealed}
    secrets = [host.seed, host.keys.private_key.private_bytes_raw(), secret_of(host.seed)]
    secrets += [link for link in host.chain.links[1:] if link not in known]
    words = set(text.split('"'))
    for secret in secrets:
        assert secret.hex() not in words
    for secret in secrets[:3]:
        assert secret.hex() not in text and repr(secret)[2:-1] not in text


def told(seed: int, plan: Plan, *, restores: bool) -> tuple[Recorder, str]:
    """Run a world of a seed; returns its story and how it ended."""
    troubled = Troubled(seed, plan)
    recorder = Recorder(troubled.world, restores=restores)
    outcome = troubled.run()
    assert outcome.violation is None, outcome.violation
    return recorder, str(outcome)


def test_a_world_goes_on_the_same_when_its_machines_are_printed_and_restored() -> None:
    moments: Counter[str] = Counter()
    for plan, seed in product(PLANS, range(3)):
        print("seed", seed, plan)
        as_it_was, outcome = told(seed, plan, restores=False)
        restored, same_outcome = told(seed, plan, restores=True)
        steps = zip_longest(as_it_was.story, restored.story)
        parted = next((number for number, (one, other) in enumerate(steps) if one != other), None)
        assert parted is None, f"the story is another one from event {parted} on"
        assert same_outcome == outcome
        moments += restored.moments
    print(moments)
    for moment, least in MOMENTS_AT_LEAST.items():
        assert moments[moment] >= least, moment


@dataclass
class Life:
    """What one machine was made of, and everything that it was told and asked for."""

    host: Host
    records: dict[str, bytes]
    state_round: int
    began: float
    journal: list[tuple[Event, float, list[Effect]]] = field(default_factory=list)


def lives_of(world: World) -> list[Life]:
    """Return the lives of a world's hosts, which fill up as it runs."""
    lives: list[Life] = []
    boot, effects_of = world.boot, world._effects

    def watch_boot(index: int) -> None:
        host = world.hosts[index]
        number = host.snapshot[0] if host.snapshot else 0
        now = world.now + host.clock_offset
        lives.append(Life(host, dict(host.disk.records), number, now))
        boot(index)

    def watch(host: Host, event: Event) -> list[Effect]:
        if host.anchoring is not None:
            return effects_of(host, event)  # no machine yet
        life = [life for life in lives if life.host is host][-1]
        now = world.now + host.clock_offset
        life.journal.append((event, now, effects_of(host, event)))
        return life.journal[-1][2]

    world.boot, world._effects = watch_boot, watch  # type: ignore[method-assign]
    return lives


def test_a_journal_of_events_is_a_test_case() -> None:
    """A fresh machine that is told what one was told in a world asks for the same."""
    told_before = restarts = 0
    for seed in range(4):
        print("seed", seed)
        troubled = Troubled(seed, Plan("mixed", (), 4, trouble_seconds=20.0))
        lives = lives_of(troubled.world)
        assert troubled.run().violation is None
        for life in lives:
            machine = Machine(
                troubled.world.genesis,
                life.host.seed,
                hash_chain=life.host.chain,
                addresses=(f"host-{life.host.index}:1",),
                records=life.records,
                state_round=life.state_round,
                now=life.began,
            )
            for number, (event, now, effects) in enumerate(life.journal):
                assert machine.handle(event, now) == effects, (life.host.index, number)
            told_before += len(life.journal)
            restarts += bool(life.records)
    print(told_before, restarts)
    assert told_before > 4_000 and restarts > 2


def test_a_print_out_and_the_events_after_it_are_a_test_case_too() -> None:
    world = World(5, 4)
    lives = lives_of(world)
    world.start()
    world.run(seconds=11.3)
    machine, life = world.hosts[2].machine, lives[2]
    assert machine is not None
    text, told_before = to_text(machine), len(life.journal)
    world.run(seconds=15)
    restored = from_text(text, seed=life.host.seed)
    for event, now, effects in life.journal[told_before:]:
        assert restored.handle(event, now) == effects
    assert len(life.journal) > told_before + 100
    assert to_text(restored) == to_text(machine)
