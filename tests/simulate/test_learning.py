"""How real worlds learn: from which text, by which codec and rule, with the filter or without."""

import json
import math
import sys
from collections import Counter
from dataclasses import replace

import pytest

from peerformer.byzantine import Byzantine
from peerformer.errors import ConfigError
from peerformer.interface.cli import main
from peerformer.interface.commands.simulate import replay_command
from peerformer.simulate import texts
from peerformer.simulate.cell import NO_ATTACK, Cell, run_cell
from peerformer.simulate.learning import Learning
from peerformer.simulate.plan import Plan, parse_adversaries
from peerformer.simulate.real import RealReplicas
from peerformer.simulate.troubles import Troubled
from peerformer.simulate.world import World

PEERS = [bytes([number]) * 32 for number in range(6)]
CELL = Cell("sign-flip", "mean", "dense-int8", filters=True, peers=4, liars=1, seed=3)
REAL = ["simulate", "--replica", "real"]


def test_the_model_learns_more_than_how_often_each_byte_occurs() -> None:
    held_out = "".join(texts.documents(texts.PROSE)[1]).encode()
    shares = [count / len(held_out) for count in Counter(held_out).values()]
    entropy = -sum(share * math.log2(share) for share in shares)
    cell = replace(CELL, attack=NO_ATTACK, rule="robust")
    found, broke = run_cell(cell, rounds=10, inner_steps=14)
    print(entropy, found)
    bits = [value for value in found.bits_per_byte if value is not None]
    assert not broke and len(bits) == 10 and bits[-1] < 0.85 * entropy < entropy < bits[0]


def test_a_cell_is_what_the_command_runs(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--rounds 2 --inner-steps 2 --rule mean --adversaries sign-flip*1 --seed 3 --json"
    assert main([*REAL, "--peers", "4", *words.split()]) == 0
    told = json.loads(capsys.readouterr().out)
    found, _ = run_cell(CELL, rounds=2, inner_steps=2)
    assert told["validation_bits_per_byte"] == [round(bits or 0, 4) for bits in found.bits_per_byte]
    assert told["bytes_sent_a_peer"] == round(found.bytes_sent_a_peer) > 0
    assert told["rounds_decided"] == 2


def test_without_the_filter_a_flip_counts_and_with_it_none_does() -> None:
    with_it, _ = run_cell(CELL, rounds=3, inner_steps=4)
    without, _ = run_cell(replace(CELL, filters=False), rounds=3, inner_steps=4)
    print(with_it, without)
    assert with_it.liars_counted == 0 and without.liars_counted == 3
    assert (with_it.bits_per_byte[-1] or 9) < (without.bits_per_byte[-1] or 0)


def test_a_sparse_codec_sends_less_and_brings_the_outer_step_that_suits_it() -> None:
    sparse, dense = Learning("sparse-2bit").config(), Learning().config()
    assert sparse.swarm.outer_momentum == 0 < dense.swarm.outer_momentum
    sent = [
        run_cell(replace(CELL, codec=codec), rounds=1, inner_steps=1)[0].bytes_sent_a_peer
        for codec in ("sparse-2bit", "dense-int8", "none")
    ]
    print(sent)
    assert sent == sorted(sent) and sent[2] > 3 * sent[1] > 9 * sent[0]


def test_peers_share_one_text_or_each_has_its_own_of_one_of_three_kinds() -> None:
    alike = RealReplicas(1, learning=Learning())
    benches = [alike.bench(peer, 0, poisons=False) for peer in PEERS]
    assert len({bench.replica.text.shards.digest for bench in benches}) == 1
    unlike = RealReplicas(1, learning=Learning(unlike=True))
    benches = [unlike.bench(peer, 0, poisons=False) for peer in PEERS]
    assert len({bench.replica.text.shards.digest for bench in benches}) == len(PEERS)
    assert Counter(unlike.kinds.values()) == dict.fromkeys(texts.KINDS, 2)
    again = unlike.bench(PEERS[0], 1, poisons=False)  # after a restart
    assert again.replica.text.shards.digest == benches[0].replica.text.shards.digest


def test_nothing_that_is_held_out_is_trained_on_and_no_kind_rules_what_is_held_out() -> None:
    for kind in texts.KINDS:
        train, held_out = texts.documents(kind)
        assert not set(train) & set(held_out)
        assert sum(map(len, train)) > 5 * sum(map(len, held_out)) > 100_000
        parts = [texts.own_part(kind, 1, peer) for peer in PEERS]
        assert all(0.3 < len(part) / len(train) < 0.7 for part in parts)
        assert not {text for part in parts for text in part} & set(held_out)
    unlike = RealReplicas(1, learning=Learning(unlike=True)).held_out.shards
    smallest = min(sum(map(len, texts.documents(kind)[1])) for kind in texts.KINDS)
    assert unlike.num_tokens < 3.1 * smallest


def test_a_python_without_its_language_reference_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    texts.documents.cache_clear()
    assert main([*REAL, "--rounds", "1", "--seed", "1"]) == 1
    assert "language reference" in capsys.readouterr().err


def test_a_poisoner_may_also_lie_about_scores() -> None:
    liars = parse_adversaries("ipm+lying-scorer*1")
    assert liars == (("ipm-0.5", "lying-scorer"),)
    world = World(4, 4, attacks={2: liars[0]}, replicas=RealReplicas(4))
    world.start()
    peer = world.hosts[2].peer
    assert isinstance(peer, Byzantine) and peer.attacks == ("lying-scorer",)
    assert peer.bench.replica.poison == "ipm-0.5"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--codec int9", "dense-int4, sparse-2bit, none"),
        ("--rule best", "centred-clipping"),
        ("--inner-steps 0", "at least 1"),
        ("--rule krum --peers 3", "--peers 4"),
        ("--adversaries imp*2", "ipm-adaptive"),
        ("--world windy", "calm"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*REAL, *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error, error


def test_a_rule_that_needs_four_makes_a_round_of_three_a_null_round() -> None:
    with pytest.raises(ConfigError):
        Learning(rule="krum").contributions_least(3)
    plan = Plan("calm", (), 4, rounds=1, replica="real", learning=Learning(rule="krum"))
    assert Troubled(1, plan).world.limits.contributions_min == 4


def test_the_command_that_replays_a_real_world_has_every_flag() -> None:
    learning = Learning("none", "mean", 3, unlike=True, filters=False)
    plan = Plan("crashes", (), 4, rounds=3, replica="real", staleness=0, learning=learning)
    command = replay_command(7, plan)
    for words in ("--world crashes", "--codec none", "--rule mean", "--inner-steps 3"):
        assert words in command
    assert command.endswith("--unlike --no-filter")
    assert "--world" not in replay_command(7, replace(plan, kind="calm"))


def test_toys_are_not_told_how_to_learn(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--unlike"]) == 2
    assert "--replica real" in capsys.readouterr().err


def test_of_unlike_texts_each_is_measured_and_nobody_honest_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "simulate --replica real --unlike --peers 6 --rounds 4 --inner-steps 5 --seed 1 --json"
    assert main(words.split()) == 0
    found = json.loads(capsys.readouterr().out)
    by_kind = found["validation_bits_per_byte_by_kind"]
    assert len(by_kind) == 3 and found["honest_contributions_refused"] == 0
    assert min(by_kind.values()) < found["validation_bits_per_byte"][-1] < max(by_kind.values())
    assert Learning(unlike=True).harm_micronats > Learning().harm_micronats
