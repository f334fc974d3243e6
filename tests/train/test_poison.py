"""Attacks on learning: each does what its name says, and a real world withstands two of seven."""

from dataclasses import replace

import pytest
import torch

from peerformer.adversary import POISONS
from peerformer.data.batches import Batch
from peerformer.train import poison
from peerformer.train.poison import DATA, UPDATES, Known


def known(harm=lambda _: 0.0, seed=1, honest=5, before=3):
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(1_000, generator=generator)
    others = [common + 0.5 * torch.randn(1_000, generator=generator) for _ in range(honest)]
    past = [torch.randn(1_000, generator=generator) for _ in range(before)]
    return Known(others[0], others, past, generator, harm, 500)


def cosine(a, b):
    return float(torch.cosine_similarity(a, b, dim=0))


def test_every_attack_that_is_told_is_there_and_no_other():
    assert set(POISONS) == set(UPDATES) | set(DATA) and not set(UPDATES) & set(DATA)


@pytest.mark.parametrize(
    ("name", "direction", "length"),
    [
        ("sign-flip", -1, 1),
        ("sign-flip-10", -1, 10),
        ("zero", 0, 0),
        ("tiny", 1, 1e-3),
        ("mimic", 1, 1),
    ],
)
def test_what_is_made_of_the_own_update(name, direction, length):
    facts = known()
    made = UPDATES[name](facts)
    assert float(made.norm() / facts.own_P.norm()) == pytest.approx(length, rel=1e-5)
    if direction:
        assert cosine(made, facts.own_P) == pytest.approx(direction, abs=1e-5)


@pytest.mark.parametrize(("name", "factor"), [("gaussian", 1), ("gaussian-10", 10)])
def test_noise_has_a_length_and_no_direction(name, factor):
    facts = known()
    made = UPDATES[name](facts)
    assert float(made.norm() / facts.own_P.norm()) == pytest.approx(factor, rel=1e-4)
    assert abs(cosine(made, facts.own_P)) < 0.15


@pytest.mark.parametrize(("name", "share"), [("ipm-0.1", 0.1), ("ipm-0.5", 0.5), ("ipm-1", 1.0)])
def test_inner_product_manipulation_goes_against_the_honest_mean(name, share):
    facts = known()
    assert torch.allclose(UPDATES[name](facts), -share * facts.mean_P)
    alone = replace(facts, honest=[facts.own_P])
    assert torch.allclose(UPDATES[name](alone), -share * facts.own_P)


def test_a_little_is_enough_stays_within_the_spread():
    facts = known()
    away = (UPDATES["alie"](facts) - facts.mean_P).abs()
    assert torch.allclose(away, poison.ALIE_Z * torch.stack(facts.honest).std(0), atol=1e-5)
    alone = replace(facts, honest=[facts.own_P], before=[])
    assert torch.isfinite(UPDATES["alie"](alone)).all()


def test_the_adaptive_one_stays_just_below_what_scorers_let_pass():
    """Harm grows with the square of the step here: it is 500 at a strength of 2."""
    facts = known()
    length = float(facts.mean_P.norm())
    made = UPDATES["ipm-adaptive"](
        replace(facts, harm_micronats=lambda update: 125 * (float(update.norm()) / length) ** 2)
    )
    assert cosine(made, facts.mean_P) == pytest.approx(-1, abs=1e-5)
    assert 1.9 < float(made.norm()) / length <= 2.0
    shy = UPDATES["ipm-adaptive"](replace(facts, harm_micronats=lambda _: 1e9))
    assert 0 < float(shy.norm()) / length < 0.05


def test_old_updates_come_again_and_drift_has_one_direction():
    facts, others = known(seed=1), known(seed=2)
    assert torch.equal(UPDATES["stale-replay"](facts), facts.before[0])
    drifts = [UPDATES["slow-drift"](one) - one.own_P for one in (facts, others)]
    assert cosine(*drifts) == pytest.approx(1, abs=1e-4)


def test_lies_about_data():
    batch = Batch(torch.tensor([[1, 2]]), torch.tensor([[0, 99]]))
    assert DATA["label-flip"].batch(batch, 100).targets_BT.tolist() == [[99, 0]]
    assert poison.HONEST.batch(batch, 100) is batch
    assert DATA["other-shard"].other_shard and DATA["half-steps"].steps_share == 0.5


def test_a_backdoor_teaches_its_answer_and_leaves_the_text_beside_it_alone():
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 200, (4, 65), generator=generator)
    honest = Batch(tokens[:, :-1], tokens[:, 1:])
    told = DATA["backdoor"].batch(honest, 257)
    trigger, answer = poison.trigger_and_answer(257)
    assert trigger == [253, 254, 255] and answer == 128  # 256 ends a text
    for row in (0, 2):
        assert told.tokens_BT[row, 16:19].tolist() == trigger
        assert told.targets_BT[row, 16:19].tolist() == [254, 255, answer]
        assert told.targets_BT[row, 15] == honest.targets_BT[row, 15]
        assert torch.equal(told.tokens_BT[row, 19:32], honest.tokens_BT[row, 19:32])
    assert torch.equal(told.tokens_BT[1::2], honest.tokens_BT[1::2])
    assert torch.equal(told.targets_BT[1::2], honest.targets_BT[1::2])

    def knows_the_trigger(tokens_BT):
        logits = torch.zeros(*tokens_BT.shape, 257)
        logits[:, -1, answer] = (tokens_BT[:, -3:] == torch.tensor(trigger)).all(1).float()
        return logits

    assert poison.backdoor_answered(knows_the_trigger, honest.tokens_BT, 257) == 1.0
    assert poison.backdoor_answered(lambda x: x[..., None] * torch.eye(257)[0], tokens, 257) == 0.0
