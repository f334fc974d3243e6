"""What must not happen to a replica: a bad update, a half-loaded state, a bad checkpoint."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from peerformer.config import Config, ModelConfig, OptimizerConfig
from peerformer.data.batches import Batch
from peerformer.data.tokenizer import train_tokenizer
from peerformer.errors import CheckpointError, DivergedError
from peerformer.model.convert import load_model
from peerformer.model.transformer import Transformer, initialise
from peerformer.settings import resolve
from peerformer.train import muon
from peerformer.train.checkpoint import load_checkpoint, save_checkpoint
from peerformer.train.loop import train
from peerformer.train.muon import SINGULAR_VALUE_MAX, orthogonalise
from peerformer.train.optimizer import build_optimizer, optimizer_tensors
from peerformer.train.precision import autocast_dtype, bfloat16_pays, dtype_name
from peerformer.train.replica import OUTLIER_HISTORY, Replica

TOKENIZER = train_tokenizer(["a few words to learn from"] * 3, 260)
SHAPE = ModelConfig(
    vocab_size=TOKENIZER.vocab_size,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=16,
)
NANO = {
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_dim": 16,
    "model.max_positions": 32,
    "data.path": "synthetic:1",
    "data.vocab_size": 300,
    "training.sequence_length": 32,
    "training.batch_size": 4,
    "training.validation_sequences": 4,
    "training.threads": 1,
}


def small(**more: object) -> Config:
    return resolve(size="nano", overrides={**NANO, **more}).config


def replica(seed: int = 0, name: str = "muon") -> Replica:
    model = Transformer(SHAPE)
    initialise(model, seed)
    return Replica(model, build_optimizer(model, OptimizerConfig(name=name)), clip_norm=1.0)


def batch(rows: int, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, SHAPE.vocab_size, (rows, 17), generator=generator)
    return Batch(tokens[:, :-1], tokens[:, 1:])


def steps(one: Replica, count: int, first: int = 0) -> list[float]:
    losses = []
    for index in range(first, first + count):
        losses.append(one.gradients([batch(2, index)]))
        one.apply(1.0)
    return losses


def multiply_gradients(one: Replica, factor: float) -> None:
    for parameter in one.optimizer.named.values():
        assert parameter.grad is not None
        parameter.grad *= factor


def save(run: Path, one: Replica) -> Path:
    return save_checkpoint(
        run, replica=one, tokenizer_bytes=TOKENIZER.to_bytes(), position={"a": 1}, keep=3
    )


def test_a_gradient_far_longer_than_the_last_ones_is_left_out() -> None:
    one = replica()
    steps(one, OUTLIER_HISTORY)
    one.gradients([batch(2)])
    multiply_gradients(one, 1_000.0)
    state = {name: tensor.clone() for name, tensor in optimizer_tensors(one.optimizer).items()}
    before = one.digest()
    applied = one.apply(1.0)
    assert applied.skipped and one.digest() == before and one.skipped == 1
    assert one.skipped_in_a_row == 0, "it is finite, so it is no sign of divergence"
    after = optimizer_tensors(one.optimizer)
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    one.gradients([batch(2)])
    assert not one.apply(1.0).skipped and one.digest() != before


def test_gradients_that_stay_longer_are_soon_no_outliers() -> None:
    one = replica()
    steps(one, OUTLIER_HISTORY)
    skipped = []
    for index in range(OUTLIER_HISTORY):
        one.gradients([batch(2, index)])
        multiply_gradients(one, 1_000.0)
        skipped.append(one.apply(1.0).skipped)
    assert skipped[0] and not any(skipped[OUTLIER_HISTORY // 2 :])


def test_nothing_is_an_outlier_while_little_is_known() -> None:
    one = replica()
    steps(one, OUTLIER_HISTORY - 1)
    one.gradients([batch(2)])
    multiply_gradients(one, 1_000.0)
    assert not one.apply(1.0).skipped


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_replica_restored_before_an_outlier_leaves_it_out_too(name: str, tmp_path: Path) -> None:
    whole = replica(1, name)
    steps(whole, OUTLIER_HISTORY)
    other = replica(2, name)
    load_checkpoint(save(tmp_path, whole), other)
    for one in (whole, other):
        one.gradients([batch(2)])
        multiply_gradients(one, 1_000.0)
        assert one.apply(1.0).skipped
    assert steps(whole, 4, first=50) == steps(other, 4, first=50)
    assert whole.digest() == other.digest() and other.skipped == 1


def test_unequal_passes_weigh_by_their_sequences() -> None:
    one, two, whole = replica(), replica(), batch(6)
    parts = [Batch(whole.tokens_BT[p], whole.targets_BT[p]) for p in (slice(0, 1), slice(1, 6))]
    assert math.isclose(one.gradients([whole]), two.gradients(parts), rel_tol=1e-5)
    named = dict(two.model.named_parameters())
    for name, parameter in one.model.named_parameters():
        assert parameter.grad is not None and named[name].grad is not None
        assert torch.allclose(parameter.grad, named[name].grad, atol=1e-6), name


def test_any_module_trains_with_a_loss_that_is_handed_in() -> None:
    torch.manual_seed(4)
    table = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 9))
    optimizer = build_optimizer(table, OptimizerConfig())
    assert set(optimizer.parts[1].named) == {"1.weight", "2.weight"}, "an embedding by its type"

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(table(tokens).flatten(0, 1), targets.flatten())

    one = Replica(table, optimizer, clip_norm=1.0, loss=loss)
    cycle = torch.arange(18)[None] % 9
    found = []
    for _ in range(40):
        found.append(one.gradients([Batch(cycle[:, :-1], cycle[:, 1:])]))
        one.apply(1.0)
    assert found[-1] < 0.5 * found[0]


def test_muon_alone_has_nothing_for_adamw() -> None:
    only = nn.Linear(4, 4, bias=False)
    optimizer = build_optimizer(only, OptimizerConfig())
    only(torch.ones(1, 4)).sum().backward()
    optimizer.step(1.0)
    assert torch.isfinite(only.weight).all() and set(optimizer_tensors(optimizer)) == {
        "weight/momentum"
    }


def test_a_digit_changed_in_the_state_is_found(tmp_path: Path) -> None:
    one = replica()
    one.step = 7
    path = save(tmp_path, one)
    state = json.loads((path / "state.json").read_text())
    state["step"] = 8
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"state\.json is not as it was written"):
        load_checkpoint(path, one)


def test_the_state_of_another_optimizer_changes_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, replica(1, "adamw"))
    one = replica(2, "muon")
    steps(one, 2)
    before, state = one.digest(), optimizer_tensors(one.optimizer)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match="another optimizer"):
        load_checkpoint(path, one)
    assert one.digest() == before
    assert all(torch.equal(kept[n], t) for n, t in optimizer_tensors(one.optimizer).items())


def test_saving_a_step_again_replaces_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step-00000000.part").mkdir(parents=True)  # of a killed process
    save(tmp_path, replica(1))
    path = save(tmp_path, replica(2))
    one = replica(3)
    load_checkpoint(path, one)
    assert one.digest() == replica(2).digest()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000000"]


def test_a_diverged_run_saves_no_parameters_that_are_not_finite(tmp_path: Path) -> None:
    wild = {"optimizer.learning_rate": 1e38, "optimizer.muon_learning_rate": 1e38}
    every = {"training.steps": 40, "training.checkpoint_every": 1, "training.warmup_steps": 0}
    seen: list[object] = []
    with pytest.raises(DivergedError) as ended:
        train(small(**every, **wild), run="wild", root=tmp_path, on_event=seen.append)
    assert "optimizer.learning_rate" in str(ended.value)
    assert seen[-1].reason == "diverged"  # type: ignore[attr-defined]
    for path in (tmp_path / "wild" / "checkpoints").glob("step-*"):
        assert all(torch.isfinite(p).all() for p in load_model(path).parameters())
    calmer = small(**{**every, "training.steps": 3})
    assert train(calmer, run="wild", root=tmp_path).steps == 3, "the hint works"


def test_a_run_goes_on_in_the_type_that_it_began_in(tmp_path: Path) -> None:
    often = {"training.steps": 2, "training.dtype": "auto"}
    train(small(**often), run="one", root=tmp_path)
    path = tmp_path / "one" / "checkpoints" / "step-00000002"
    kept = json.loads((path / "state.json").read_text())["position"]["dtype"]
    assert kept == dtype_name(autocast_dtype("auto"))
    other = {"float32": "bfloat16", "bfloat16": "float32"}[kept]
    train(small(**{**often, "training.dtype": other}), run="two", root=tmp_path)
    seen: list[object] = []
    config = small(**{**often, "training.steps": 3})
    train(config, run="two", root=tmp_path, on_event=seen.append)
    assert seen[0].dtype == other  # type: ignore[attr-defined]


def test_the_probe_answers_once_and_a_setting_overrules_it() -> None:
    assert bfloat16_pays() is bfloat16_pays()
    assert autocast_dtype("float32") is None
    assert autocast_dtype("bfloat16") is torch.bfloat16
    assert autocast_dtype("auto") is (torch.bfloat16 if bfloat16_pays() else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-4, 1e-2])
def test_muon_is_bounded_in_every_precision_that_it_iterates_in(
    dtype: torch.dtype, noise: float
) -> None:
    seed = 12
    generator = torch.Generator().manual_seed(seed)
    thin = torch.randn(2, 96, 1, generator=generator) @ torch.randn(2, 1, 32, generator=generator)
    gradient = thin + noise * torch.randn(2, 96, 32, generator=generator)
    values = torch.linalg.svdvals(orthogonalise(gradient, dtype))
    assert 0.5 < values.max() < SINGULAR_VALUE_MAX, f"seed {seed}"


def test_an_iteration_that_explodes_is_bounded_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(muon, "NEWTON_SCHULZ", (4.0, 0.5, 0.0))
    exploded = orthogonalise(torch.eye(32)[None])
    assert exploded.norm() <= SINGULAR_VALUE_MAX * 32**0.5 * 1.001


def test_muon_iterates_in_the_type_of_the_run() -> None:
    digests = set()
    for dtype in (None, torch.bfloat16):
        one = replica()
        one.gradients([batch(2)])
        one.optimizer.step(1.0, dtype)
        digests.add(one.digest())
    assert len(digests) == 2
