"""What is not learned costs nothing; a document packed with others is read as if it were alone."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from peerformer.config import Config, DataConfig, ModelConfig, OptimizerConfig
from peerformer.data.batches import NOT_LEARNED, Batch, Batches, Window, batch_of
from peerformer.data.prepare import prepare
from peerformer.data.shards import Encoded, ShardSet, shards_of
from peerformer.data.sources import parts_of
from peerformer.errors import ConfigError
from peerformer.model.transformer import Transformer
from peerformer.node.directory import SwarmDirectory
from peerformer.node.founding import found
from peerformer.train.evaluate import evaluate, evaluate_windows
from peerformer.train.optimizer import build_optimizer
from peerformer.train.poison import DATA
from peerformer.train.replica import Replica

END = 0
SHAPE = ModelConfig(
    vocab_size=40, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, max_positions=64,
)  # fmt: skip


def made_documents(seed: int, lengths=(5, 9, 1, 14, 7)) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(1, 40, length).tolist() for length in lengths]


def packed(documents: list[list[int]]) -> ShardSet:
    """The documents one after the other, with the end of another text before the first."""
    tokens = [END, *(token for document in documents for token in [*document, END])]
    return ShardSet((np.asarray(tokens, np.uint16),), 40, len(tokens), "")


def alone(model: Transformer, document: list[int]) -> tuple[float, int]:
    tokens = torch.tensor([[END, *document, END]])
    with torch.no_grad():
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    return float(loss) * (len(document) + 1), len(document) + 1


def test_a_packed_batch_has_the_loss_of_its_documents_alone() -> None:
    model, documents = Transformer(SHAPE).eval(), made_documents(3)
    shards = packed(documents)
    batch = Batches(shards, shards.num_tokens - 1, END).batch(0, 0, batch_size=1)
    assert batch.documents_BT is not None
    single = [alone(model, document) for document in documents]
    expected = sum(nats for nats, _ in single) / sum(count for _, count in single)
    with torch.no_grad():
        together = model.loss(batch.tokens_BT, batch.targets_BT, documents_BT=batch.documents_BT)
        mixed = model.loss(batch.tokens_BT, batch.targets_BT)
    assert math.isclose(float(together), expected, rel_tol=1e-5), "seed 3"
    assert not math.isclose(float(mixed), expected, rel_tol=1e-5), "without masks it is another"
    batches = Batches(shards, shards.num_tokens - 1, END)
    measured = evaluate(model, batches, sequences=1, byte_lengths_V=np.ones(40, np.int32))
    assert math.isclose(measured.loss_nats_per_token, expected, rel_tol=1e-5)


def test_the_gradient_of_one_document_does_not_reach_another() -> None:
    model, documents = Transformer(SHAPE).eval(), made_documents(4)
    shards = packed(documents)
    batch = Batches(shards, shards.num_tokens - 1, END).batch(0, 0, batch_size=1)
    second = batch.documents_BT == 2
    targets_BT = batch.targets_BT.where(second, torch.tensor(NOT_LEARNED))
    model.loss(batch.tokens_BT, targets_BT, documents_BT=batch.documents_BT).backward()
    packed_gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    tokens = torch.tensor([[END, *documents[1], END]])
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    for ours, parameter in zip(packed_gradients, model.parameters(), strict=True):
        assert torch.allclose(ours, parameter.grad, atol=1e-6), "seed 4"


def masked_batch(seed: int) -> Batch:
    random = np.random.default_rng(seed)
    windows = [
        Window(random.integers(0, 40, 17), random.random(17) < share)
        for share in (0.1, 0.9, 0.5, 0.0)
    ]
    return batch_of(windows)


def test_accumulated_passes_with_masks_are_one_large_batch() -> None:
    whole = masked_batch(5)
    gradients = []
    for size in (4, 2, 1):
        model = Transformer(SHAPE)
        replica = Replica(model, build_optimizer(model, OptimizerConfig()), clip_norm=0.0)
        parts = [
            Batch(whole.tokens_BT[start : start + size], whole.targets_BT[start : start + size])
            for start in range(0, 4, size)
        ]
        loss = replica.gradients(parts)
        gradients.append((loss, [p.grad.clone() for p in model.parameters()]))
    for loss, others in gradients[1:]:
        assert math.isclose(loss, gradients[0][0], rel_tol=1e-6)
        for ours, theirs in zip(others, gradients[0][1], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6), "seed 5"


def test_a_step_that_learns_nothing_leaves_the_gradient_zero() -> None:
    model = Transformer(SHAPE)
    replica = Replica(model, build_optimizer(model, OptimizerConfig()), clip_norm=1.0)
    batch = batch_of([Window(np.arange(17), np.zeros(17, np.bool_))])
    assert replica.gradients([batch]) == 0.0
    assert all(not p.grad.any() for p in model.parameters())


def test_evaluation_counts_what_is_learned() -> None:
    model, lengths_V = Transformer(SHAPE).eval(), np.arange(40, dtype=np.int32)
    window = Window(np.arange(17), np.arange(17) % 3 == 0)
    measured = evaluate_windows(model, [window], lengths_V)
    assert measured.tokens == 5 and measured.bytes == 3 + 6 + 9 + 12 + 15
    with torch.no_grad():
        logs_TV = model(torch.arange(16)[None])[0].log_softmax(-1)
    nats = -sum(float(logs_TV[token - 1, token]) for token in (3, 6, 9, 12, 15))
    assert math.isclose(measured.loss_nats_per_token, nats / 5, rel_tol=1e-5)


def test_sources_keep_the_masks_of_their_part() -> None:
    first, second = (
        Encoded([1, 2, 3], 3, np.array([False, True, True, True])),
        Encoded([4, 5], 2, np.array([True, False, False])),
    )
    shards = shards_of([first, second], vocab_size=40, end_of_text_id=END)
    parts = dict(parts_of(shards, "a:4,b:3"))
    assert parts["a"].learned(0, 4).tolist() == [False, True, True, True]
    assert parts["b"].learned(0, 3).tolist() == [True, False, False]


def test_a_liar_that_flips_targets_leaves_what_is_not_learned() -> None:
    flipped = DATA["label-flip"].batch(masked_batch(6), 40)
    honest = masked_batch(6)
    ignored = honest.targets_BT == NOT_LEARNED
    assert ignored.any() and (flipped.targets_BT[ignored] == NOT_LEARNED).all()
    assert (flipped.targets_BT[~ignored] == 39 - honest.targets_BT[~ignored]).all()


def test_document_masks_are_switched_on_by_a_setting(tmp_path: Path) -> None:
    made = prepare(DataConfig(path="synthetic:1", vocab_size=300, max_bytes=20_000), tmp_path)
    end = made.tokenizer.end_of_text_id
    batch = Batches(made.train, 200, end).batch(0, 0, batch_size=4)
    assert batch.documents_BT is not None and (batch.documents_BT.diff(dim=1) >= 0).all()
    starts = batch.documents_BT.diff(dim=1) == 1
    assert starts.any() and (batch.tokens_BT[:, 1:][starts] == end).all()
    assert Batches(made.train, 200).batch(0, 0, batch_size=4).documents_BT is None


def test_a_swarm_is_not_founded_with_document_masks(tmp_path: Path) -> None:
    config = replace(Config(), data=DataConfig(document_masks=True))
    with pytest.raises(ConfigError, match="without document masks"):
        found(SwarmDirectory(tmp_path / "swarm"), config, [bytes([n]) * 32 for n in range(4)])
    assert not (tmp_path / "swarm").exists()
