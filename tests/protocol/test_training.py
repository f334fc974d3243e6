"""When a peer trains and for which round, with one voter alone, work by work."""

from dataclasses import replace

import pytest

from peerformer.protocol.codec import MalformedError
from peerformer.protocol.effects import (
    Adopt,
    Applied,
    Apply,
    Command,
    Effect,
    Persist,
    StartWork,
    Train,
    Trained,
    Work,
    WorkFinished,
)
from peerformer.protocol.genesis import STALENESS_MAX, Founder, Genesis, Limits
from peerformer.protocol.identity import HashChain, KeyPair
from peerformer.protocol.machine import Machine
from peerformer.protocol.messages import NO_HASH, PROTOCOL_VERSION
from peerformer.protocol.training import shard_seed

SEED = b"\7" * 32
FOUNDER = Founder(KeyPair.from_seed(SEED).peer_id, HashChain.from_seed(SEED).links[0])
NOW = 1_000_000.0
ROOT = b"\5" * 32


def genesis_of(staleness: int) -> Genesis:
    return Genesis(
        PROTOCOL_VERSION, b"test", b"{}", NO_HASH, 0, NO_HASH, 0, ROOT, 32, 64,
        Limits(contributions_min=1, staleness=staleness), (FOUNDER,),
    )  # fmt: skip


class Alone:
    """One voter, its disk, and what it was ordered to do and to sign."""

    def __init__(self, staleness: int) -> None:
        self.genesis = genesis_of(staleness)
        self.disk: dict[str, bytes] = {}
        self.ordered: list[Work] = []
        self.boot()

    def boot(self) -> None:
        self.machine = Machine(
            self.genesis, SEED, records=self.disk, state_round=self.tip_on_disk(), now=NOW
        )
        self.ordered.clear()
        self.take(self.machine.handle(Command("start"), NOW))

    def tip_on_disk(self) -> int:
        return sum(key.startswith("header/") for key in self.disk)

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Persist(records, deleted):
                    self.disk.update(records)
                    for key in deleted:
                        self.disk.pop(key, None)
                case StartWork(work):
                    self.ordered.append(work)

    def finish(self, work: Work, result: Trained | Applied | bool | None) -> None:
        self.take(self.machine.handle(WorkFinished(work, result), self.machine.now + 1.0))

    def trained(self, number: int) -> None:
        (work,) = (w for w in self.ordered if isinstance(w, Train) and w.round == number)
        self.finish(work, Trained(bytes((number,)) * 32, 8, NO_HASH, 1))

    def decide(self) -> None:
        """Compute what is waited for, which decides the round."""
        apply = next(w for w in self.ordered if isinstance(w, Apply) and w.round == self.tip + 1)
        self.finish(apply, Applied(ROOT, ()))
        adopt = next(w for w in self.ordered if isinstance(w, Adopt) and w.round == self.tip)
        self.finish(adopt, True)

    @property
    def tip(self) -> int:
        return self.machine.chain.tip

    def trainings(self) -> list[int]:
        return [work.round for work in self.ordered if isinstance(work, Train)]

    def contributed(self) -> list[int]:
        """The rounds that a signed contribution is on disk for."""
        return [int(key.split("/")[1]) for key in sorted(self.disk) if "/contribution/" in key]


def test_without_staleness_the_next_training_waits_for_the_decision() -> None:
    peer = Alone(0)
    peer.trained(1)
    assert peer.trainings() == [1]
    peer.decide()
    assert peer.trainings() == [1, 2]


def test_with_staleness_it_begins_at_once_and_its_contribution_waits_for_its_round() -> None:
    peer = Alone(1)
    peer.trained(1)
    assert peer.trainings() == [1, 2] and peer.contributed() == [1] and peer.tip == 0
    peer.trained(2)
    assert peer.trainings() == [1, 2] and peer.contributed() == [1]
    peer.decide()
    assert peer.tip == 1 and peer.contributed() == [2] and peer.trainings() == [1, 2, 3]
    assert any(isinstance(work, Apply) and work.round == 2 for work in peer.ordered)
    assert peer.machine.collection.attested and peer.machine.collection.grace_set


def test_a_training_in_hand_goes_on_while_its_round_begins() -> None:
    peer = Alone(1)
    peer.trained(1)
    peer.decide()
    assert peer.tip == 1 and peer.trainings() == [1, 2] and peer.contributed() == []
    peer.trained(2)
    assert peer.contributed() == [2] and peer.trainings() == [1, 2, 3]


def test_a_restart_loses_what_was_not_signed_and_signs_nothing_else_for_what_was() -> None:
    peer = Alone(1)
    peer.trained(1)
    peer.trained(2)
    seed = next(w.seed for w in peer.ordered if isinstance(w, Train) and w.round == 2)
    before = dict(peer.disk)
    peer.boot()
    assert peer.trainings() == [2] and peer.contributed() == [1]
    assert {k: v for k, v in peer.disk.items() if "/contribution/" in k}.items() <= before.items()
    assert Train(2, seed) in peer.ordered


def test_a_training_with_nothing_to_send_leaves_its_round_without_and_the_next_one_goes_on() -> (
    None
):
    peer = Alone(1)
    peer.trained(1)
    (work,) = (w for w in peer.ordered if isinstance(w, Train) and w.round == 2)
    peer.finish(work, None)
    peer.decide()
    assert peer.contributed() == [] and peer.trainings() == [1, 2, 3]
    assert peer.tip == 2  # a null round, which nothing holds up


def test_an_answer_that_comes_twice_or_for_another_round_is_no_second_contribution() -> None:
    peer = Alone(1)
    peer.trained(1)
    disk = dict(peer.disk)
    first = Train(1, shard_seed(peer.machine.chain, peer.machine.me, 1))
    peer.finish(first, Trained(b"\x09" * 32, 8, NO_HASH, 1))
    peer.finish(Train(3, bytes(32)), Trained(b"\x0a" * 32, 8, NO_HASH, 1))
    assert peer.disk == disk and peer.trainings() == [1, 2]


def test_a_genesis_of_more_staleness_than_one_round_founds_nothing() -> None:
    fine = genesis_of(STALENESS_MAX)
    assert Genesis.from_bytes(fine.to_bytes()) == fine
    wild = replace(fine, limits=replace(fine.limits, staleness=STALENESS_MAX + 1))
    with pytest.raises(MalformedError):
        Genesis.from_bytes(wild.to_bytes())
    assert fine.chain_id != genesis_of(0).chain_id
