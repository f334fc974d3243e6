"""Random trouble of a seed: who lies, what breaks, when; and the run of one such world.

A world of 4 to 13 peers (also where n is not 3f + 1) has up to f of them lie, crash for ever with a
torn disk or both, never more than f together. For `TROUBLE_SECONDS` of virtual time hosts crash
between any two effects, sleep, find their disks full; links lose, repeat, reorder, are slow, split
both ways, one way and on and off; peers join and leave. Then the network becomes timely and what is
honest must go on: the open round within f + 2 views, and every later one.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random

from peerformer.adversary import POISONS
from peerformer.protocol.checkpoint import newest_checkpoint
from peerformer.protocol.effects import Command
from peerformer.protocol.genesis import Limits
from peerformer.protocol.membership import tolerated_faults
from peerformer.simulate.audited import TOLD_ONLY_HERE, drawn_permille, misreport
from peerformer.simulate.host import Host, Replicas
from peerformer.simulate.invariants import Violation
from peerformer.simulate.learned import Learned, learned
from peerformer.simulate.plan import LIARS_TOLD, Plan
from peerformer.simulate.power import await_power_failure
from peerformer.simulate.schedules import Schedules
from peerformer.simulate.slow_lines import catch_up, drawn_state_size, slow_a_line
from peerformer.simulate.toy import ToyReplicas
from peerformer.simulate.world import LIMITS, World

SIZES = range(4, 14)
SHARES = [size**-2 for size in SIZES]  # messages grow with the square: each size as much time
TRAIN_SECONDS = (0.3, 1.0, 2.5)  # of the fastest host: short rounds are many rounds
AMBUSHES_MAX = 3
LATE_SECONDS = 1.0  # of liars that want to know first: less than others wait
PLAYED_SECONDS_MAX = 120.0  # a schedule that has begun is played to its end
ABOUT_LOCKS = 0.25
LIES_ABOUT_LOCKS = (("no-reproposal", "double-vote", "amnesia"), ("desert",))
COMMITTEE_ROUNDS = 5  # then another is drawn
DRAWN = 0.2  # share of the worlds in which not all voters vote
STALE = 0.25  # share of the worlds in which peers train ahead of the vote
SIZES_ABOUT_LOCKS = (4, 4, 4, 5, 7)
PROPOSALS_MIN = 500  # that one peer can make: more than a world lasts that is given no rounds
WATCH_SECONDS = 5.0
SETTLE_SECONDS = 15.0  # reconnecting and noticing that the trouble is over
PATIENCE_SECONDS = 600.0
ROUND_SECONDS_MAX = 60.0  # on average, where so many rounds are asked for
ROUNDS_AFTER = 2  # to be decided once the trouble is over
FALSE_BASE = "false-base"  # told where somebody comes with an invitation
LIES_DRAWN = tuple(name for name in LIARS_TOLD if name not in (FALSE_BASE, *TOLD_ONLY_HERE))
INVITED = 0.5  # share of the spares that come later, with an invitation


@dataclass(slots=True)
class Outcome:
    """What happened in one world."""

    seed: int
    rounds_decided: int = 0
    views: Counter[int] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)  # crashes, partitions, joins …
    learned: Learned | None = None  # of real replicas
    violation: Violation | None = None

    @property
    def bits_per_byte(self) -> tuple[float | None, ...]:
        """How good the agreed model was after each round, where it was measured."""
        return self.learned.bits_per_byte if self.learned is not None else ()


def replicas_of(plan: Plan, seed: int, limits: Limits) -> Replicas:
    """Return the replicas that a plan asks for."""
    if plan.replica == "toy":
        audited = limits.audit_permille > 0
        return ToyReplicas(drawn_state_size(plan, seed), audited=audited)
    from peerformer.simulate.real import RealReplicas  # and torch, only where it is asked for

    audited = limits.audit_permille > 0
    return RealReplicas(seed, limits.staleness, plan.learning, audited=audited)


class Troubled:
    """A world with its trouble scheduled."""

    def __init__(self, seed: int, plan: Plan, replicas: Replicas | None = None) -> None:
        """Draw everything from the seed."""
        self.seed, self.plan = seed, plan
        self.random = Random(f"trouble {seed}")
        # Some worlds are all about locks: few peers, a liar that leads over them, votes cut short.
        self.about_locks = plan.kind == "mixed" and self.random.random() < ABOUT_LOCKS
        self.size = plan.peers or self._size()
        self.counts: Counter[str] = Counter()
        committee = self._committee()
        self.faults = tolerated_faults(min(self.size, committee))  # of any committee drawn
        liars = self._liars()
        spares = self.random.choice((0, 0, 1, 2)) if plan.has("churn") else 0
        staleness = self._staleness()
        limits = replace(
            LIMITS,
            staleness=staleness,
            audit_permille=drawn_permille(plan, seed) if not staleness else 0,
            committee_size=committee,
            committee_rounds=COMMITTEE_ROUNDS,
        )
        if plan.learning is not None:
            least, harm = plan.learning.contributions_least(self.size), plan.learning.harm_micronats
            limits = replace(limits, contributions_min=least, harm_micronats=harm)
        self.world = World(
            seed,
            self.size,
            attacks=liars,
            spares=spares,
            limits=limits,
            replicas=replicas or replicas_of(plan, seed, limits),
            hash_chain_length=max(PROPOSALS_MIN, 2 * (plan.rounds or 0)),
        )
        self.founders = list(range(self.size))
        self.spares = list(range(self.size, self.size + spares))
        self.honest = [index for index in self.founders if index not in liars]
        self.schedules: Schedules | None = None
        if self.about_locks:
            self.schedules = Schedules(self.world, Random(f"schedules {seed}"), self.honest)
        # They train last, and so know what the honest trained.
        self.poisoners = {i for i, names in liars.items() if POISONS.keys() & set(names)}
        self.leaving: set[int] = set()
        self.invited = self._invite()
        misreport(self.world)
        self.torn_left = self.faults - len(liars)
        self.healed = False
        self._schedule()
        if plan.has("crashes"):
            await_power_failure(self)
            slow_a_line(self)

    def _size(self) -> int:
        if self.about_locks:
            return self.random.choice(SIZES_ABOUT_LOCKS)
        return self.random.choices(SIZES, SHARES)[0]

    def _staleness(self) -> int:
        """A random number generator of its own: other worlds stay what they are."""
        if self.plan.staleness is not None:
            return self.plan.staleness
        return int(Random(f"staleness {self.seed}").random() < STALE)

    def _committee(self) -> int:
        """Above so many voters, so many vote; as much as in small swarms, in most worlds."""
        random = Random(f"committee {self.seed}")
        drawn = self.plan.kind == "mixed" and self.size > SIZES[0] and not self.about_locks
        if self.plan.adversaries is None and drawn and random.random() < DRAWN:
            return random.randint(SIZES[0], self.size - 1)
        return LIMITS.committee_size

    def _liars(self) -> dict[int, tuple[str, ...]]:
        faults = self.faults
        if self.plan.adversaries is not None:
            drawn = list(self.plan.adversaries)
        elif self.about_locks:
            lies = Random(f"lies {self.seed}").choice(LIES_ABOUT_LOCKS)
            drawn = [lies] * faults
        elif self.plan.has("liars"):
            number = self.random.choice((0, faults, faults, self.random.randint(0, faults)))
            drawn = [self._lies() for _ in range(number)]
        else:
            drawn = []
        chosen = self.random.sample(range(self.size), min(len(drawn), self.size))
        return dict(zip(chosen, drawn, strict=False))

    def _invite(self) -> set[int]:
        """Let some spares come later, with a checkpoint; a liar has a false base for them.

        A random number generator of its own: other worlds stay what they are.
        """
        random = Random(f"invited {self.seed}")
        invited = {index for index in self.spares if random.random() < INVITED}
        for index in invited:
            moment = random.random() * self.plan.trouble_seconds
            self.world.at(moment, partial(self._come, index, random))
        liars = [host for host in self.world.hosts if host.attacks]
        if invited and liars:
            random.choice(liars).attacks += (FALSE_BASE,)
        return invited

    def _come(self, index: int, random: Random) -> None:
        """Start a spare with the newest round of some honest peer as its checkpoint."""
        machines = [host.machine for host in self.world.honest() if host.machine is not None]
        chains = [machine.chain for machine in machines if machine.chain.tip]
        if not chains:
            self.world.at(WATCH_SECONDS, partial(self._come, index, random))
            return
        self.counts["invitations"] += 1
        self.invited.discard(index)
        self.world.hosts[index].checkpoint = newest_checkpoint(random.choice(chains))
        self.world.boot(index)

    def _lies(self) -> tuple[str, ...]:
        if self.random.random() < 0.4:  # what belongs together
            return ("split", "double-vote", *self.random.sample(["amnesia", "no-reproposal"], 1))
        return tuple(self.random.sample(LIES_DRAWN, self.random.randint(1, 3)))

    # --- scheduling ----------------------------------------------------------------------------

    def _schedule(self) -> None:
        random, network, plan = self.random, self.world.network, self.plan
        network.jitter_seconds = random.choice((0.05, 0.3, 1.0))
        if plan.has("partitions"):
            network.loss = random.choice((0.0, 0.0, 0.05, 0.2))
            network.duplication = random.choice((0.0, 0.2))
            network.upload_bytes_per_second = random.choice((0.0, 0.0, 50_000.0))
            for _ in range(random.randint(0, 3)):
                self.world.at(self._moment(), partial(self._partition, random.randint(0, 3)))
        for host in self.world.hosts:
            host.snapshot_every = random.choice((1, 1, 3))
            host.clock_offset = random.uniform(-60, 60)
        if plan.has("crashes", "churn"):
            for _ in range(random.randint(0, 5)):
                self.world.at(self._moment(), self._break_something)
        if plan.has("churn"):
            for index in self.honest:
                if random.random() < 0.06:
                    self.world.at(self._moment(), partial(self._leave, index))
        if plan.has("crashes", "partitions"):
            self._lie_in_wait()
        fastest = random.choice(TRAIN_SECONDS)
        self.world.works.train_seconds = lambda index: (
            fastest * 1.5 + LATE_SECONDS
            if index in self.poisoners
            else fastest * (1 + self.world.random.random() / 2)
        )
        self.world.at(WATCH_SECONDS, self._watch)

    def _lie_in_wait(self) -> None:
        """Strike at the worst moment: just after somebody voted, gave up, or decided first."""
        random, watch = self.random, self.world.invariants
        kinds = ("prepare", "commit", "commit", "timeout", "proposal", "attestation")
        ambushes: list[tuple[str, list[int]]] = [
            (random.choice(kinds), [random.randint(1, 3 * self.size)])
            for _ in range(random.randint(0, AMBUSHES_MAX))
        ]
        if self.about_locks:
            ambushes += [("commit", [random.randint(1, 20)]), ("timeout", [random.randint(1, 8)])]

        def on_first_said(host: Host, kind: str) -> None:
            for awaited, left in ambushes:
                if awaited == kind and not self.healed:
                    left[0] -= 1
                    if left[0] == 0:
                        self._strike(host)

        watch.on_first_said = on_first_said
        if self.schedules is not None:
            self._play_schedules(self.schedules)
        elif self.plan.has("partitions") and random.random() < 0.3:
            watch.on_first_decided = self._isolate

    def _play_schedules(self, schedules: Schedules) -> None:
        watch = self.world.invariants
        strike = watch.on_first_said

        def on_first_said(host: Host, kind: str) -> None:
            strike(host, kind)
            if not self.healed:
                schedules.said(host, kind)

        watch.on_first_said = on_first_said
        watch.on_first_decided = lambda host: schedules.on_decided(host)

    def _strike(self, host: Host) -> None:
        if self.plan.has("crashes") and self.random.random() < 0.6:
            host.effects_until_crash = self.random.randint(1, 4)
            if self.plan.has("partitions") and self.random.random() < 0.5:
                self._divide()
        elif self.plan.has("partitions"):
            self._isolate(host)

    def _divide(self) -> None:
        """Leave no side with a quorum, for longer than a view lasts."""
        everyone = list(range(len(self.world.hosts)))
        self.random.shuffle(everyone)
        half = len(everyone) // 2
        self.counts["partitions"] += 1
        self.world.network.split(set(everyone[:half]), set(everyone[half:]))
        self.world.at(10 + self.random.random() * 20, self.world.network.join)

    def _isolate(self, host: Host) -> None:
        if self.healed or self.random.random() < 0.5:
            return
        self.counts["partitions"] += 1
        self.world.network.split({host.index}, set(range(len(self.world.hosts))) - {host.index})
        self.world.at(5 + self.random.random() * 30, self.world.network.join)

    def _moment(self) -> float:
        return self.random.random() * self.plan.trouble_seconds

    def _partition(self, kind: int) -> None:
        everyone = range(len(self.world.hosts))
        if self.healed or len(everyone) == 1:
            return
        side = set(self.random.sample(everyone, self.random.randint(1, len(everyone) - 1)))
        other = set(everyone) - side
        both_ways = kind != 1
        self.counts["partitions"] += 1
        self.world.network.split(side, other, both_ways=both_ways)
        lasts = self.random.random() * 20
        if kind == 2:  # flapping
            for beat in range(1, 8):
                action = partial(self._flap, side, other, up=beat % 2 == 0)
                self.world.at(lasts * beat / 8, action)
        self.world.at(lasts, self.world.network.join)

    def _flap(self, side: set[int], other: set[int], *, up: bool) -> None:
        if self.healed or not up:
            self.world.network.join()
        else:
            self.world.network.split(side, other)

    def _break_something(self) -> None:
        if self.healed:
            return
        host = self.world.hosts[self.random.choice(self.honest)]
        match self.random.randint(0, 9):
            case 0:
                self._freeze(host.index)
            case 1:
                self.counts["full disks"] += 1
                host.disk.full = True
                self.world.at(self.random.random() * 15, partial(self._make_room, host.index))
            case 2 if self.torn_left > 0:
                self.torn_left -= 1
                self.counts["torn disks"] += 1
                self.world.crash(host.index)
                host.disk.torn = True
            case 3 | 4:
                self.world.crash(host.index)
            case _:  # in the middle of what one event brings about
                host.effects_until_crash = self.random.randint(1, 60)

    def _freeze(self, index: int) -> None:
        self.counts["sleeps"] += 1
        self.world.freeze(
            index, self.random.random() * 10, clock_jump=self.random.choice((0, 3_600))
        )

    def _make_room(self, index: int) -> None:
        self.world.hosts[index].disk.full = False

    def _leave(self, index: int) -> None:
        voters = min(self.size, self.world.limits.committee_size) - len(self.leaving)
        if self.healed or voters <= 4 or tolerated_faults(voters - 1) < self.faults:
            return  # f of the others may be liars or dead: leaving must not make them too many
        self.leaving.add(index)
        self.counts["leaves"] += 1
        self.world.command(index, Command("leave"))

    def _watch(self) -> None:
        """Somebody looks after every machine now and then."""
        for host in self.world.hosts:
            if not host.up and not host.disk.full and host.index not in self.invited:
                self.world.boot(host.index)
        self.world.at(WATCH_SECONDS, self._watch)

    # --- running -------------------------------------------------------------------------------

    @property
    def opening(self) -> str:
        """What the world is about, in a line."""
        liars = {h.index: "+".join(h.attacks) for h in self.world.hosts if h.attacks}
        return f"{self.size} founders, {len(self.spares)} more; liars: {liars or 'none'}"

    def run(self) -> Outcome:
        """Run the world to its end; a violation is in the outcome."""
        outcome = Outcome(self.seed)
        world = self.world
        try:
            for host in world.hosts:
                if host.index not in self.invited:
                    world.boot(host.index)
            if self.plan.is_cell:
                self._learn()
            else:
                self._suffer()
                self._heal()
                self._go_on()
                self._arrive()
                catch_up(self, PATIENCE_SECONDS)
            self._measure_last()
        except Violation as violation:
            outcome.violation = violation
        outcome.rounds_decided = len(world.invariants.decided)
        outcome.learned = learned(world)
        outcome.views = world.invariants.views
        outcome.counts = self.counts
        outcome.counts["crashes"] += world.crashes
        outcome.counts["byzantine acts"] += world.plot.acts
        outcome.counts["byzantine peers"] += len(self.founders) - len(self.honest)
        outcome.counts["evictions"] += world.invariants.evictions
        outcome.counts["audits"] += world.invariants.audits
        outcome.counts["audits failed"] += world.invariants.audits_failed
        outcome.counts["joins"] += world.invariants.joins
        outcome.counts["messages lost"] += world.network.lost
        return outcome

    def _suffer(self) -> None:
        decided, rounds = self.world.invariants.decided, self.plan.rounds
        if rounds is None:
            self.world.run(seconds=self.plan.trouble_seconds)
            self.world.run(seconds=PLAYED_SECONDS_MAX, until=lambda: not self._plays())
        else:
            seconds = max(PATIENCE_SECONDS, rounds * ROUND_SECONDS_MAX)
            self.world.run(seconds=seconds, until=lambda: len(decided) >= rounds)

    def _learn(self) -> None:
        """Run until an honest peer has so many rounds; in calm there is nothing to recover from."""
        rounds = self.plan.rounds
        assert rounds is not None
        seconds = rounds * ROUND_SECONDS_MAX

        def newest() -> int:
            return max(self.world.tip(index) for index in self.honest)

        if not self.world.run(seconds=seconds, until=lambda: newest() >= rounds):
            what = f"{newest()} of {rounds} rounds decided in {seconds:.0f} s"
            self.world.invariants.fail("what is honest goes on", what)

    def _plays(self) -> bool:
        """Whether a schedule is in the middle of its trouble."""
        return self.schedules is not None and self.schedules.stops is not None

    def _measure_last(self) -> None:
        """Wait until somebody holds the state of the newest round, if states are measured."""
        decided, measured = self.world.invariants.decided, self.world.replicas.bits_per_byte
        if measured or self.plan.learning is not None:
            self.world.run(seconds=PATIENCE_SECONDS, until=lambda: max(decided) in measured)

    def _heal(self) -> None:
        self.healed = True
        if self.schedules is not None:
            self.schedules.end()
            self.counts["schedules"] += self.schedules.played
        self.world.network.heal()
        for host in self.world.hosts:
            host.disk.full = False
            host.effects_until_crash = None
        self.world.run(seconds=SETTLE_SECONDS)

    def _go_on(self) -> None:
        """Liveness: the open round within f + 2 views from now, and the next ones as well."""
        world = self.world
        stay = [host.index for host in world.honest() if host.index not in self.leaving]
        stay = [index for index in stay if index not in self.spares]
        begun = max(world.tip(index) for index in stay)
        view = max(self._view(index, begun + 1) for index in stay)
        goal = begun + ROUNDS_AFTER
        reached = world.run(
            seconds=PATIENCE_SECONDS,
            until=lambda: all(world.tip(index) >= goal for index in stay),
        )
        if not reached:
            tips = [world.tip(host.index) for host in world.hosts]
            what = f"{tips} decided {PATIENCE_SECONDS:.0f} s after healing, wanted {goal} of {stay}"
            world.invariants.fail("what is honest goes on", what)
        faults = self.faults
        for number in range(begun + 1, goal + 1):
            most = faults + 2 + (view if number == begun + 1 else 0)
            if world.invariants.view_of[number] > most:
                what = f"round {number} took view {world.invariants.view_of[number]}, f = {faults}"
                world.invariants.fail("decided within f + 2 views", what)

    def _arrive(self) -> None:
        """Whoever came with an invitation has a chain that begins where it says."""
        world = self.world

        def lost() -> list[int]:
            return [host.index for host in world.honest() if host.anchoring is not None]

        if not world.run(seconds=PATIENCE_SECONDS, until=lambda: not lost()):
            what = f"{lost()} have no chain {PATIENCE_SECONDS:.0f} s after healing"
            world.invariants.fail("an invitation leads to its checkpoint", what)

    def _view(self, index: int, number: int) -> int:
        machine = self.world.hosts[index].machine
        at_it = machine is not None and machine.ballot.number == number
        return machine.ballot.consensus.view if machine is not None and at_it else 0
