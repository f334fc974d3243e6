"""Loss and bits per byte, against a sum by hand."""

import math

import numpy as np
import pytest
import torch

from peerformer.config import ModelConfig
from peerformer.data.batches import Batches, Window
from peerformer.data.shards import ShardSet
from peerformer.model.transformer import Transformer
from peerformer.train import evaluate as module
from peerformer.train.evaluate import evaluate, evaluate_windows

SHAPE = ModelConfig(
    vocab_size=30,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=16,
)
BYTES_V = (np.arange(30) % 5).astype(np.int32)


def windows(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(6)
    return [generator.integers(0, 30, length, dtype=np.int64) for length in lengths]


def by_hand(model: Transformer, window: np.ndarray) -> float:
    with torch.no_grad():
        logits_TV = model(torch.from_numpy(window[None, :-1]))[0]
    logs_TV = torch.log_softmax(logits_TV, dim=-1)
    return -sum(float(logs_TV[place, token]) for place, token in enumerate(window[1:]))


def test_it_is_what_a_sum_by_hand_gives_for_windows_of_any_length() -> None:
    model, texts = Transformer(SHAPE), windows(17, 17, 9, 17, 2)
    nats = sum(by_hand(model, window) for window in texts)
    size = sum(int(BYTES_V[window[1:]].sum()) for window in texts)
    tokens = sum(len(window) - 1 for window in texts)
    found = evaluate_windows(model, map(Window, texts), BYTES_V)
    assert (found.tokens, found.bytes) == (tokens, size)
    assert math.isclose(found.loss_nats_per_token, nats / tokens, rel_tol=1e-5)
    assert math.isclose(found.bits_per_byte, nats / size / math.log(2), rel_tol=1e-5)


def test_how_many_go_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = Transformer(SHAPE), [Window(one) for one in windows(*[17] * 9)]
    whole = evaluate_windows(model, texts, BYTES_V)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 1)
    seen: list[int] = []
    single = evaluate_windows(model, texts, BYTES_V, on_tokens=seen.append)
    assert seen == [16 * (number + 1) for number in range(9)]
    assert math.isclose(whole.loss_nats_per_token, single.loss_nats_per_token, rel_tol=1e-5)


def test_a_model_in_training_is_so_afterwards_and_nothing_is_no_error() -> None:
    model = Transformer(SHAPE).train()
    assert evaluate_windows(model, [], BYTES_V).tokens == 0
    assert model.training
    tokens = windows(100)[0].astype(np.uint32)
    batches = Batches(ShardSet((tokens,), 30, 100, ""), 16)
    assert evaluate(model, batches, sequences=4, byte_lengths_V=BYTES_V).tokens == 64
