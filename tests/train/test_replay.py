"""Repeating a training from its record: honest work is found again, less than that is not."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from peerformer.gradients.compress import decode
from peerformer.protocol.identity import hash_of
from peerformer.simulate.real import RealReplicas
from peerformer.train.agreed import AgreedReplica
from peerformer.train.replay import PASSES_PERMILLE, Repetition

SEED = b"\x05" * 32


def replicas(codec: str = "dense-int8", optimizer: str = "muon") -> RealReplicas:
    made = RealReplicas(8, audited=True)
    config = made.config
    made.config = replace(
        config,
        optimizer=replace(config.optimizer, name=optimizer),
        swarm=replace(config.swarm, codec=codec),
    )
    return made


def replica_of(world: RealReplicas, name: bytes) -> AgreedReplica:
    made = world.bench(name * 32, 0, poisons=False).replica
    assert isinstance(made, AgreedReplica)
    return made


def trained(replica: AgreedReplica, number: int) -> tuple[bytes, bytes]:
    made = replica.train(number, SEED, lambda: False)
    assert made is not None and made.record
    return made.blob, made.record


def go_on(number: int, *all_of_them: AgreedReplica, blob: bytes) -> None:
    for replica in all_of_them:
        found = replica.apply(number, [(b"a", blob)], bytes(32))
        assert found is not None
        replica.move_to(number, found[0], accepted=True)


def cosine(found: Repetition) -> float:
    assert found.why.startswith("cosine")
    return float(found.why.split()[1].rstrip(","))


@pytest.mark.parametrize("codec", ["dense-int8", "sparse-2bit"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_honest_work_is_found_again_by_another_peer(codec: str, optimizer: str) -> None:
    world = replicas(codec, optimizer)
    author, auditor = replica_of(world, b"a"), replica_of(world, b"b")
    for number in (1, 2, 3):  # later rounds have an optimizer's state, and a residual
        blob, record = trained(author, number)
        found = auditor.repeat(number, blob, record, SEED, lambda: False)
        assert found.passed and cosine(found) >= 0.99, (number, found)
        go_on(number, author, auditor, blob=blob)
    # Also when the state has moved on since, by as much as an auditor has time.
    blob, record = trained(author, 4)
    go_on(4, author, auditor, blob=blob)
    assert auditor.repeat(4, blob, record, SEED, lambda: False).passed
    go_on(5, author, auditor, blob=blob)
    assert auditor.repeat(4, blob, record, SEED, lambda: False).passed
    for number in (6, 7):
        go_on(number, author, auditor, blob=blob)
    assert auditor.repeat(4, blob, record, SEED, lambda: False).passed is None


@pytest.mark.parametrize("attack", ["half-steps", "other-shard", "sign-flip", "gaussian", "zero"])
def test_other_or_less_work_is_not_found_again(attack: str) -> None:
    world = replicas()
    author, auditor = replica_of(world, b"a"), replica_of(world, b"b")
    author.poison_from(attack, 3)
    for number in (1, 2):
        blob, _ = trained(author, number)
        go_on(number, author, auditor, blob=blob)
    blob, record = trained(author, 3)
    found = auditor.repeat(3, blob, record, SEED, lambda: False)
    print(attack, found.why)
    assert found.passed is False
    if attack != "half-steps":  # the right way, but not far enough
        assert cosine(found) * 1_000 < PASSES_PERMILLE


def test_the_optimizers_state_is_needed_to_find_it_again() -> None:
    world = replicas()
    author, auditor = replica_of(world, b"a"), replica_of(world, b"b")
    blob, first = trained(author, 1)
    go_on(1, author, auditor, blob=blob)
    for number in (2, 3):
        blob, record = trained(author, number)
        go_on(number, author, auditor, blob=blob)
    with_it = auditor.repeat(3, blob, record, SEED, lambda: False)
    without = auditor.repeat(3, blob, first, SEED, lambda: False)
    assert with_it.passed and cosine(without) < cosine(with_it) - 0.01


def test_an_auditor_goes_on_with_its_own_training_as_if_it_had_not_looked() -> None:
    world = replicas()
    author, auditor, other = (replica_of(world, name) for name in (b"a", b"b", b"b"))
    blob, record = trained(author, 1)
    looked = False

    def look() -> bool:
        nonlocal looked
        if not looked:
            looked = True
            assert auditor.repeat(1, blob, record, SEED, lambda: False).passed
        return False

    one = auditor.train(1, SEED, look)
    two = other.train(1, SEED, lambda: False)
    assert looked and one is not None and two is not None and one.blob == two.blob


def test_a_record_that_is_none_is_a_failed_audit_and_nothing_worse() -> None:
    world = replicas()
    author, auditor = replica_of(world, b"a"), replica_of(world, b"b")
    blob, _ = trained(author, 1)
    go_on(1, author, auditor, blob=blob)
    blob, record = trained(author, 2)
    tensors = load(record)
    name = next(name for name in tensors if name.startswith("optimizer."))
    bad = {
        "empty": b"",
        "noise": bytes(range(256)) * 8,
        "cut": record[:-1],
        "no residual": save({n: t for n, t in tensors.items() if n != "residual"}),
        "no state": save({n: t for n, t in tensors.items() if n != name}),
        "another shape": save({**tensors, name: torch.zeros(3)}),
        "another type": save({**tensors, name: tensors[name].to(torch.int32)}),
        "not a number": save({**tensors, name: tensors[name] * float("nan")}),
        "infinite residual": save({**tensors, "residual": tensors["residual"] + float("inf")}),
        "short residual": save({**tensors, "residual": tensors["residual"][1:].clone()}),
        "unknown": save({**tensors, "optimizer.nothing/momentum": torch.zeros(1)}),
        "another name": save({**tensors, "more": torch.zeros(1)}),
        "too many norms": save({**tensors, "norms": torch.ones(99, dtype=torch.float64)}),
    }
    for what, data in bad.items():
        found = auditor.repeat(2, blob, data, SEED, lambda: False)
        assert found == Repetition(False, "its record is none of such a training"), what
    huge = save({**tensors, "residual": torch.full_like(tensors["residual"], 3e38)})
    assert auditor.repeat(2, blob, huge, SEED, lambda: False).passed  # a residual is bounded
    assert auditor.repeat(2, blob, record, SEED, lambda: False).passed  # unharmed


def test_a_repetition_stops_when_it_must() -> None:
    world = replicas()
    author, auditor = replica_of(world, b"a"), replica_of(world, b"b")
    blob, record = trained(author, 1)
    assert auditor.repeat(1, blob, record, SEED, lambda: True).passed is None


def test_a_swarm_without_audits_keeps_neither_records_nor_old_states() -> None:
    world = RealReplicas(8)
    replica = world.bench(b"a" * 32, 0, poisons=False).replica
    made = replica.train(1, SEED, lambda: False)
    assert made is not None and made.record == b"" and replica.departed_from == {}
    assert len(decode(made.blob, world.parameters, "dense-int8")) == world.parameters


def test_honest_work_improves_its_own_data_more_than_other_data() -> None:
    """Over some rounds; a lazy peer's contribution knows nothing of the data it was given."""
    world = replicas()
    author, judge = replica_of(world, b"a"), replica_of(world, b"b")
    honest = lazy = 0
    for number in range(1, 13):
        seed, other = (hash_of(word, bytes([number])) for word in ("own", "other"))
        made = author.train(number, seed, lambda: False)
        assert made is not None
        score_seed = hash_of("score", bytes([number]))
        for shard in (seed, other):
            gain = judge.check(made.blob, score_seed, b"k", shard).gain
            assert gain is not None
            honest, lazy = (honest + gain, lazy) if shard == seed else (honest, lazy + gain)
        assert judge.check(made.blob, score_seed, b"k").gain is None
        go_on(number, author, judge, blob=made.blob)
    print("honest", honest, "lazy", lazy)
    assert honest > 0 and honest > 4 * abs(lazy)
