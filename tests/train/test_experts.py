"""Training a mixture of experts: balanced, told in the metrics, resumed, agreed on in a swarm."""

import csv
import io
import pydoc_data.topics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from peerformer.config import Config
from peerformer.data.batches import Batches
from peerformer.data.shards import ShardSet
from peerformer.data.tokenizer import train_tokenizer
from peerformer.events import ExpertsCounted, StepDone
from peerformer.gradients.fixed_point import to_float
from peerformer.interface.progress import ProgressLine
from peerformer.model.experts import auxiliary_losses, routers_of
from peerformer.model.transformer import Transformer, initialise
from peerformer.settings import resolve
from peerformer.train.agreed import AgreedReplica, initial_state
from peerformer.train.checkpoint import latest
from peerformer.train.loop import train
from peerformer.train.optimizer import build_optimizer
from peerformer.train.replica import Replica

SMALL = {
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_dim": 16,
    "model.max_positions": 32,
    "model.num_experts": 4,
    "data.path": "synthetic:1",
    "data.vocab_size": 300,
    "training.sequence_length": 32,
    "training.batch_size": 4,
    "training.steps": 8,
    "training.warmup_steps": 2,
    "training.checkpoint_every": 4,
    "training.validate_every": 4,
    "training.validation_sequences": 2,
    "training.dtype": "float32",
    "training.threads": 1,
}
BALANCED = {"router_aux_loss_coef": 0.02}
BIASED = {"router_aux_loss_coef": 0.0, "router_bias_update_rate": 0.001}
UNBALANCED = {"router_aux_loss_coef": 0.0}


def small(**more: object) -> Config:
    return resolve(size="nano", overrides={**SMALL, **more}).config


# --- balance on real text -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_text() -> tuple[Batches, Batches, int]:
    """The documentation of Python's language, as tokens to train on and tokens held out."""
    texts = list(pydoc_data.topics.topics.values())
    tokenizer = train_tokenizer(texts, 512)
    tokens = [[*tokenizer.encode(text), tokenizer.end_of_text_id] for text in texts]

    def batches(pieces: list[list[int]]) -> Batches:
        shard = np.array([token for piece in pieces for token in piece], np.uint16)
        return Batches(ShardSet((shard,), tokenizer.vocab_size, 1, ""), 32)

    return batches(tokens[20:]), batches(tokens[:20]), tokenizer.vocab_size


def shares_after(steps: int, text: tuple[Batches, Batches, int], **fields: float) -> torch.Tensor:
    """What each expert of a layer gets of the held-out text, in fair shares, (1, E)."""
    learned, held_out, vocab_size = text
    config = small(**{"model.num_experts": 8, "model.num_layers": 1})
    model = Transformer(replace(config.model, vocab_size=vocab_size, **fields)).train()
    initialise(model, 0)
    replica = Replica(model, build_optimizer(model, config.optimizer), clip_norm=1.0)
    for step in range(steps):
        replica.gradients([learned.batch(0, step, batch_size=8)])
        replica.apply(1.0 - 0.9 * step / steps)
    with torch.no_grad(), auxiliary_losses(model):
        for window in held_out.validation(64):
            model(torch.from_numpy(window.tokens)[None, :-1])
    counts_LE = torch.stack([router.tokens_E for router in routers_of(model)]).float()
    return counts_LE / counts_LE.mean(1, keepdim=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fields", [BALANCED, BIASED], ids=["loss", "bias"])
def test_balanced_no_expert_gets_under_half_of_its_share_after_300_steps(real_text, fields) -> None:
    shares_LE = shares_after(300, real_text, **fields)
    assert shares_LE.min() >= 0.5, shares_LE


@pytest.mark.timeout(600)
def test_without_a_balance_experts_starve(real_text) -> None:
    shares_LE = shares_after(300, real_text, **UNBALANCED)
    assert (shares_LE < 0.5).sum() >= 2 and shares_LE.min() < 0.2, shares_LE


# --- what is told -------------------------------------------------------------------------------


def test_the_load_is_in_the_metrics_the_journal_and_the_progress_line(tmp_path: Path) -> None:
    seen: list[object] = []
    config = small(**{"model.mlp_only_layers": "0", "model.moe_capacity_factor": 1.0})
    train(config, run="one", on_event=seen.append, root=tmp_path)
    rows = list(csv.DictReader((tmp_path / "one" / "metrics.csv").open()))
    assert len(rows) == 8
    for row in rows:
        least, most = float(row["experts_least"]), float(row["experts_most"])
        assert 0 <= least <= 1 <= most <= 2, "top-2 of 4: at most half of all, twice the share"
        assert float(row["experts_layer_1_least"]) == least and "experts_layer_0_least" not in row
        assert 0 <= float(row["experts_dropped"]) < 1
    assert any(float(row["experts_dropped"]) > 0 for row in rows)
    counted = [event for event in seen if isinstance(event, ExpertsCounted)]
    assert [(event.step, event.layer) for event in counted] == [(4, 1), (8, 1)]
    assert sum(counted[-1].shares) == pytest.approx(1)
    assert min(counted[-1].shares) * 4 == pytest.approx(float(rows[-1]["experts_least"]))
    assert '"event":"experts_counted"' in (tmp_path / "one" / "journal.jsonl").read_text()
    line = io.StringIO()
    progress = ProgressLine(8, line)
    progress.on_event(next(event for event in reversed(seen) if isinstance(event, StepDone)))
    assert f"experts {float(rows[-1]['experts_least']):.2f} to" in line.getvalue()


def test_a_dense_model_has_no_columns_for_experts(tmp_path: Path) -> None:
    train(small(**{"model.num_experts": 0}), run="one", root=tmp_path)
    assert "experts" not in (tmp_path / "one" / "metrics.csv").read_text()
    assert "experts_" not in (tmp_path / "one" / "journal.jsonl").read_text()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_goes_on_exactly_where_it_stopped_bias_and_all(
    tmp_path: Path, optimizer: str
) -> None:
    config = small(
        **{
            "model.router_bias_update_rate": 0.01,
            "model.shared_expert_intermediate_size": 16,
            "optimizer.name": optimizer,
        }
    )
    train(config, run="whole", root=tmp_path)
    asked = iter([False] * 4 + [True])
    stopped = train(config, run="broken", root=tmp_path, should_stop=lambda: next(asked))
    assert stopped.stopped and stopped.steps == 5
    train(config, run="broken", root=tmp_path)
    digests = [
        (latest(tmp_path / name) / "model.safetensors").read_bytes()  # type: ignore[operator]
        for name in ("whole", "broken")
    ]
    assert digests[0] == digests[1]


# --- a swarm --------------------------------------------------------------------------------------


def test_peers_agree_on_experts_and_on_the_bias_that_balances_them(real_text) -> None:
    learned, held_out, vocab_size = real_text
    config = small(
        **{
            "model.vocab_size": vocab_size,
            "data.vocab_size": vocab_size,
            "model.router_bias_update_rate": 0.01,
            "swarm.inner_steps": 8,
            "training.steps": 40,
        }
    )

    def peer() -> AgreedReplica:
        model, scorer = Transformer(config.model), Transformer(config.model)
        initialise(model, 0)
        return AgreedReplica(config, model, scorer, initial_state(model), learned, held_out)

    peers = [peer() for _ in range(4)]
    for round_number in range(1, 4):
        made = [
            one.train(round_number, bytes([index, round_number]) * 8, lambda: False)
            for index, one in enumerate(peers)
        ]
        blobs = [(bytes([index]), one.blob) for index, one in enumerate(made) if one]
        assert len(blobs) == 4
        for one in peers:
            applied = one.apply(round_number, blobs, b"seed")
            assert applied is not None and not applied[1]
            one.move_to(round_number, applied[0], accepted=True)
    assert len({one.state.to_bytes() for one in peers}) == 1
    agreed = peers[0].layout.split(to_float(peers[0].state.theta_P))
    for layer in (0, 1):
        bias_E = agreed[f"layers.{layer}.mlp.gate.e_score_correction_bias"]
        assert bias_E.abs().max() > 0.005, "each moved by 0.01 a step, for 24 steps"
    model = peers[0].agreed_model().eval()
    first = Transformer(config.model).eval()
    initialise(first, 0)
    batch = held_out.batch(0, 0, batch_size=16)
    with torch.no_grad():
        before, after = (m.loss(batch.tokens_BT, batch.targets_BT) for m in (first, model))
    assert after < before - 0.5
