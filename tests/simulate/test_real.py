"""Worlds whose peers train: real scores, real contributions, real aggregation, a tiny model."""

import json
import subprocess
import sys

import pytest
from torch import Tensor

from peerformer.adversary import POISONS
from peerformer.events import ContributionsAlike, SyncFinished
from peerformer.interface.cli import main
from peerformer.protocol.merkle import state_root
from peerformer.protocol.refusals import HARMFUL
from peerformer.simulate.campaign import Tally
from peerformer.simulate.invariants import Violation
from peerformer.simulate.learned import Learned
from peerformer.simulate.plan import Plan
from peerformer.simulate.real import RealReplicas
from peerformer.simulate.troubles import Outcome, Troubled
from peerformer.simulate.world import World
from peerformer.train import poison

FLIPS = (("sign-flip",), ("sign-flip",))
# One that hides among the honest, one that poisons its text, one that saves work; the rest is deep.
OFTEN_TRIED = ("alie", "label-flip", "half-steps")


def learned(outcome: Outcome) -> float:
    """By how many bits per byte the agreed model became better."""
    print(outcome.seed, outcome.bits_per_byte, outcome.counts)
    assert outcome.violation is None, outcome.violation
    bits = [value for value in outcome.bits_per_byte if value is not None]
    assert len(bits) == outcome.rounds_decided  # somebody held the state of every round
    return bits[0] - bits[-1]


@pytest.mark.parametrize("staleness", [pytest.param(0, marks=pytest.mark.deep), 1])
def test_a_real_world_learns_and_the_same_seed_learns_the_same(staleness: int) -> None:
    plan = Plan("calm", (), 4, rounds=1, replica="real", staleness=staleness)
    first, again = Troubled(1, plan).run(), Troubled(1, plan).run()
    assert learned(first) > 1.0
    assert first.bits_per_byte == again.bits_per_byte
    assert first.bits_per_byte != Troubled(2, plan).run().bits_per_byte


def test_two_flips_of_seven_do_not_stop_it_from_learning() -> None:
    troubled = Troubled(0, Plan("calm", FLIPS, 7, rounds=1, replica="real"))
    assert learned(troubled.run()) > 1.0
    liars = {host.me for host in troubled.world.hosts if host.attacks}
    machine = troubled.world.honest()[0].machine
    assert machine is not None
    refused = [entry for item in machine.chain.items for entry in item.header.refused]
    harmful = {entry.peer for entry in refused if entry.reason == HARMFUL}
    assert liars <= harmful  # the scores found them out


def test_a_real_world_goes_on_through_crashes() -> None:
    outcome = Troubled(5, Plan("crashes", (), 4, rounds=3, replica="real")).run()
    assert learned(outcome) > 1.0 and outcome.counts["crashes"] > 0


def test_a_host_that_slept_through_rounds_fetches_the_state_and_trains_on() -> None:
    replicas = RealReplicas(5)
    world = World(5, 4, replicas=replicas)
    world.start()
    assert world.run(seconds=60, until=lambda: world.tip(0) >= 1)
    world.crash(3)
    assert world.run(seconds=120, until=lambda: world.tip(0) >= 4)
    world.boot(3)
    machine = world.hosts[0].machine
    assert machine is not None

    def takes_part() -> bool:
        late = machine.chain.items[4:]
        authors = {entry.peer for item in late for entry in item.header.contributions}
        return world.hosts[3].me in authors

    assert world.run(seconds=120, until=takes_part)
    assert any(isinstance(event, SyncFinished) for event in world.hosts[3].reports)
    bits = replicas.bits_per_byte
    assert bits[5] < bits[4] < bits[1]


def test_hosts_that_agree_on_a_state_must_find_the_same_model() -> None:
    replicas = RealReplicas(6)
    one, other = (replicas.bench(name * 32, 0, poisons=False) for name in (b"a", b"b"))
    state = replicas.first_state()
    assert one.install(1, state_root(state), state)
    one.replica.state.theta_P.add_(1 << 12)
    changed = one.replica.state.to_bytes()
    with pytest.raises(Violation, match="equal state, equal model"):
        other.install(1, state_root(changed), changed)


def test_each_host_has_a_text_of_its_own() -> None:
    replicas = RealReplicas(7)
    benches = [replicas.bench(bytes([number]) * 32, 0, poisons=False) for number in range(3)]
    texts = [bench.replica.text.shards for bench in benches]
    assert len({text.digest for text in [*texts, replicas.held_out.shards]}) == 4


def test_the_command_tells_how_good_the_agreed_model_is_after_each_round(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "simulate --replica real --seed 2 --peers 4 --rounds 3 --json"
    assert main(words.split()) == 0
    found = json.loads(capsys.readouterr().out)
    bits = found["validation_bits_per_byte"]
    assert len(bits) == found["rounds_decided"] == 3 and bits[-1] < bits[0] < 8.0
    assert found["bytes_sent_a_peer"] > 100_000 and found["honest_contributions_refused"] == 0


def test_of_several_worlds_the_mean_is_told_as_far_as_all_went() -> None:
    tally = Tally()
    tally.add(Outcome(0, learned=Learned((6.0, 5.0, 4.0), 100.0, 1, 0)))
    tally.add(Outcome(1, learned=Learned((7.0, None), 300.0, 0, 2)))
    assert tally.learning() == {
        "validation_bits_per_byte": [6.5, 5.0],
        "bytes_sent_a_peer": 200,
        "honest_contributions_refused": 1,
        "liars_contributions_counted": 2,
        "backdoor_answered": 0.0,
    }
    assert "validation_bits_per_byte" not in Tally().as_json(1.0)


def test_toys_need_no_torch_and_rounds_end_their_worlds_too() -> None:
    program = (
        "import sys\n"
        "from peerformer.interface.cli import main\n"
        "code = main('simulate --seeds 2 --jobs 1 --rounds 2 --world calm --json'.split())\n"
        "assert code == 0 and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 8 <= json.loads(done.stdout)["rounds_decided"] < 50  # two worlds, each with its end
    refused = subprocess.run(
        [sys.executable, "-m", "peerformer", "simulate", "--rounds", "0"],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2 and "--rounds" in refused.stderr


def test_a_sign_flipper_among_toys_is_refused_as_harmful() -> None:
    troubled = Troubled(9, Plan("calm", (("sign-flip",),), 4, rounds=2))
    assert troubled.run().violation is None
    liar = next(host.me for host in troubled.world.hosts if host.attacks)
    machine = troubled.world.honest()[0].machine
    assert machine is not None
    refused = [entry for item in machine.chain.items for entry in item.header.refused]
    assert {(entry.peer, entry.reason) for entry in refused} == {(liar, HARMFUL)}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in OFTEN_TRIED else pytest.mark.deep)
        for name in sorted(POISONS)
    ],
)
def test_every_attack_on_learning_runs_in_a_real_world(name: str) -> None:
    plan = Plan("calm", ((name,),), 4, rounds=2, replica="real", staleness=0)
    troubled = Troubled(5, plan)
    outcome = troubled.run()
    print(name, outcome.bits_per_byte)
    assert outcome.violation is None and outcome.rounds_decided >= 4
    liar = next(host for host in troubled.world.hosts if host.attacks)
    assert liar.peer is not None and liar.peer.bench.replica.poison == name
    last = outcome.bits_per_byte[-1]
    assert last is not None and last < 8.1


def test_an_attacker_knows_what_the_honest_trained_before_it_sends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[int] = []

    def told(known: poison.Known) -> Tensor:
        heard.append(len(known.honest))
        return -known.mean_P

    monkeypatch.setitem(poison.UPDATES, "ipm-1", told)
    plan = Plan("calm", (("ipm-1",),), 4, rounds=2, replica="real", staleness=0)
    assert Troubled(5, plan).run().violation is None
    print(heard)
    assert len(heard) >= 4 and heard.count(3) >= 0.7 * len(heard)


@pytest.mark.parametrize("liars", [(), (("mimic",),)], ids=["honest", "mimic"])
def test_who_sends_what_another_sends_is_noticed_and_nobody_else(
    liars: tuple[tuple[str, ...], ...],
) -> None:
    troubled = Troubled(3, Plan("calm", liars, 5, rounds=3, replica="real"))
    assert troubled.run().violation is None
    copiers = {host.me.hex() for host in troubled.world.hosts if host.attacks}
    told = [
        event
        for host in troubled.world.honest()
        for event in host.reports
        if isinstance(event, ContributionsAlike)
    ]
    assert bool(told) == bool(liars)
    assert all(copiers & {event.peer, event.other} for event in told)
