"""A replica: accumulation equals the large batch, a bad gradient changes nothing."""

import math
from dataclasses import replace

import torch

from peerformer.config import ModelConfig, OptimizerConfig, TrainingConfig
from peerformer.data.batches import Batch
from peerformer.model.transformer import Transformer
from peerformer.train.optimizer import build_optimizer
from peerformer.train.replica import Replica
from peerformer.train.schedule import learning_rate_scale

SHAPE = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=16,
)


def replica(clip_norm: float = 1.0) -> Replica:
    model = Transformer(SHAPE)
    return Replica(model, build_optimizer(model, OptimizerConfig()), clip_norm=clip_norm)


def batch(size: int, seed: int = 1) -> Batch:
    tokens = torch.randint(0, 40, (size, 17), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def test_eight_accumulated_passes_give_the_gradient_of_the_large_batch() -> None:
    one, two, whole = replica(), replica(), batch(8)
    parts = [Batch(whole.tokens_BT[i : i + 1], whole.targets_BT[i : i + 1]) for i in range(8)]
    assert math.isclose(one.gradients([whole]), two.gradients(parts), rel_tol=1e-6)
    for (name, a), (_, b) in zip(
        one.model.named_parameters(), two.model.named_parameters(), strict=True
    ):
        assert torch.allclose(a.grad, b.grad, atol=1e-6), name


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    one = replica()
    one.gradients([batch(2)])
    next(iter(one.optimizer.named.values())).grad[0, 0] = math.nan
    before = one.digest()
    applied = one.apply(1.0)
    assert applied.skipped and one.digest() == before
    assert one.step == 1 and one.skipped_in_a_row == 1
    one.gradients([batch(2)])
    assert not one.apply(1.0).skipped
    assert one.digest() != before and one.skipped_in_a_row == 0


def test_clipping_bounds_the_gradient() -> None:
    one = replica(clip_norm=1e-3)
    one.gradients([batch(4)])
    norm = one.apply(0.0).gradient_norm
    clipped = torch.nn.utils.get_total_norm([p.grad for p in one.optimizer.named.values()])
    assert norm > 1e-2 and math.isclose(clipped.item(), 1e-3, rel_tol=1e-3)


def test_the_schedule_warms_up_and_decays_to_its_last_share() -> None:
    settings = TrainingConfig(steps=100, warmup_steps=10, final_fraction=0.1)
    scales = [learning_rate_scale(step, settings) for step in range(120)]
    assert scales[0] == 0.1 and scales[9] == 1.0 and scales[10] == 1.0
    assert all(a > b for a, b in zip(scales[10:99], scales[11:100], strict=True))
    assert math.isclose(scales[99], 0.1) and math.isclose(scales[119], 0.1)
    assert learning_rate_scale(0, replace(settings, steps=1, warmup_steps=0)) == 1.0
