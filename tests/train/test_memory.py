"""The memory of a training step is known before it is taken, within 2 % of the allocator's."""

import gc
import json
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from peerformer.config import ModelConfig, OptimizerConfig, TrainingConfig
from peerformer.model.transformer import Transformer
from peerformer.train.memory import step_memory
from peerformer.train.optimizer import build_optimizer, optimizer_tensors

MODEL = ModelConfig(
    vocab_size=512, hidden_size=64, intermediate_size=192, num_layers=5, num_heads=4,
    num_kv_heads=2, head_dim=16, max_positions=128,
)  # fmt: skip
TRAINING = TrainingConfig(batch_size=8, sequence_length=128)
MUON, ADAMW = OptimizerConfig(), OptimizerConfig(name="adamw")
CASES = {
    "activations weigh most": (MODEL, TRAINING, MUON, None),
    "the last gradient weighs most": (
        replace(MODEL, num_layers=12, tie_embeddings=False),
        replace(TRAINING, batch_size=1, sequence_length=8), ADAMW, None,
    ),
    "the optimizer's step weighs most": (
        replace(MODEL, num_layers=12, hidden_size=128), replace(TRAINING, batch_size=1,
        sequence_length=8), MUON, None,
    ),
    "accumulation": (MODEL, replace(TRAINING, accumulation=4), ADAMW, None),
    "bfloat16": (MODEL, TRAINING, MUON, torch.bfloat16),
    "patterns": (
        replace(MODEL, attention_layers="full,window,blocks", sliding_window=9), TRAINING, MUON,
        None,
    ),
    "sinks": (replace(MODEL, attention_sinks=True, num_layers=4), TRAINING, MUON, None),
    "the classic decoder": (
        replace(MODEL, positions="learned", norm="layer", feed_forward="gelu-tanh", qk_norm=False,
                attention_bias=True, mlp_bias=True, num_kv_heads=4), TRAINING, ADAMW, None,
    ),
    "one layer": (replace(MODEL, num_layers=1), TRAINING, MUON, None),
}  # fmt: skip
RARE = {"accumulation", "patterns", "sinks", "the last gradient weighs most"}


def measured(tmp_path, model_config, training, config, dtype):
    """The peak by PyTorch's own record of its CPU allocator, and what the parts weigh."""
    rows = training.batch_size // training.accumulation
    tokens = torch.randint(512, (rows, training.sequence_length))
    gc.collect()  # what is freed below was made below
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = Transformer(model_config)
        optimizer = build_optimizer(model, config)
        for _ in range(training.accumulation):
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                loss = model.loss(tokens, tokens)
            loss.backward()
        gradients = sum(weight.grad.nbytes for weight in model.parameters())
        optimizer.step(1.0, dtype)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"]) for event in trace if event.get("name") == "[memory]"
    )
    peak = max(accumulate(size for _, size in changes))
    state = sum(tensor.nbytes for tensor in optimizer_tensors(optimizer).values())
    return sum(weight.nbytes for weight in model.parameters()), gradients, state, peak


@pytest.mark.parametrize(
    ("model", "training", "optimizer", "dtype"),
    [
        pytest.param(*case, id=name, marks=pytest.mark.deep if name in RARE else ())
        for name, case in CASES.items()
    ],
)
def test_the_memory_of_a_step_is_foretold(tmp_path, model, training, optimizer, dtype):
    told = step_memory(model, training, optimizer, dtype)
    weights, gradients, state, peak = measured(tmp_path, model, training, optimizer, dtype)
    assert (told.weights_bytes, told.gradients_bytes) == (weights, gradients)
    assert told.optimizer_bytes == state
    assert told.peak_bytes == pytest.approx(peak, rel=0.02)


def test_a_model_whose_shapes_depend_on_its_data_is_told_without_activations(monkeypatch):
    plain = step_memory(MODEL, TRAINING, MUON)

    def forward(self, x):
        chosen = x[x[..., 0] > 0]  # so many rows as there are, which nobody knows before
        return self.down_proj(self.up_proj(x)) + chosen.sum()

    monkeypatch.setattr("peerformer.model.feed_forward.SwiGLU.forward", forward)
    told = step_memory(MODEL, TRAINING, MUON)
    assert told == replace(plain, peak_bytes=None)
