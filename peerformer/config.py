"""Every setting of a run: frozen dataclasses, one page, all defaults here and nowhere else.

Each field carries what is allowed in its metadata, so that validation, `config show` and the
documentation read the same table. Precedence when settings are combined (see `settings.py`):
defaults < `--size` < `swarm.codec` < `swarm.texts` < JSON files < environment `PEERFORMER_…` <
command line.
"""

from dataclasses import dataclass, field
from typing import Any


def setting(default: Any, help: str, **allowed: Any) -> Any:
    """A dataclass field with its help text and what is allowed: `least`, `most`, `choices`."""
    return field(default=default, metadata={"help": help, **allowed})


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the decoder-only transformer (Qwen3's layout)."""

    vocab_size: int = setting(0, "tokens in the vocabulary; 0 takes the tokenizer's", least=0)
    hidden_size: int = setting(256, "width D of the residual stream", least=8)
    intermediate_size: int = setting(768, "hidden width F of the SwiGLU feed-forward", least=8)
    num_layers: int = setting(6, "number of blocks", least=1, most=512)
    num_heads: int = setting(4, "query heads H", least=1)
    num_kv_heads: int = setting(2, "key-value heads; divides num_heads", least=1)
    head_dim: int = setting(64, "width K of one head; even", least=2)
    max_positions: int = setting(256, "longest context in tokens", least=8)
    rope_theta: float = setting(10_000.0, "base of the rotary frequencies", least=1.0)
    rms_norm_epsilon: float = setting(1e-6, "added under the root of RMSNorm", least=0.0)
    tie_embeddings: bool = setting(True, "share the embedding with the output head")


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it becomes tokens."""

    path: str | None = setting(
        None, "file or folder of text; none: the documentation found on this machine"
    )
    tokenizer: str | None = setting(None, "tokenizer.json to load; none: train one on the data")
    vocab_size: int = setting(
        2_048, "vocabulary of a tokenizer trained here", least=257, most=262_144
    )
    validation_fraction: float = setting(
        0.03, "share of documents held out, chosen by hash", least=0.0, most=0.5
    )
    held_out: str | None = setting(
        None, "file or folder of text to hold out, instead of a share of the documents"
    )
    max_bytes: int = setting(64_000_000, "stop reading after so many bytes of text", least=1_000)


@dataclass(frozen=True)
class OptimizerConfig:
    """The inner optimizer: Muon on matrices with AdamW on the rest, or AdamW alone."""

    name: str = setting("muon", "inner optimizer", choices=("muon", "adamw"))
    learning_rate: float = setting(3e-3, "peak learning rate of AdamW", least=0.0)
    muon_learning_rate: float = setting(0.02, "peak learning rate of Muon", least=0.0)
    weight_decay: float = setting(0.01, "decoupled weight decay on matrices", least=0.0)
    beta1: float = setting(0.9, "AdamW's first-moment decay", least=0.0, most=1.0)
    beta2: float = setting(0.95, "AdamW's second-moment decay", least=0.0, most=1.0)
    epsilon: float = setting(1e-8, "AdamW's denominator guard", least=0.0)
    muon_momentum: float = setting(0.95, "Muon's Nesterov momentum", least=0.0, most=1.0)
    clip_norm: float = setting(1.0, "gradient norm ceiling; 0 turns clipping off", least=0.0)


@dataclass(frozen=True)
class TrainingConfig:
    """The loop: how many steps, of what size, and when to look and save."""

    steps: int = setting(1_000, "optimizer steps", least=1)
    batch_size: int = setting(8, "sequences a step, over all accumulation steps", least=1)
    accumulation: int = setting(1, "split a step's batch into so many passes", least=1)
    sequence_length: int = setting(256, "tokens a sequence", least=8)
    warmup_steps: int = setting(20, "steps of linear warm-up", least=0)
    final_fraction: float = setting(
        0.1, "learning rate at the last step, as a share of the peak", least=0.0, most=1.0
    )
    validate_every: int = setting(100, "steps between validations", least=1)
    validation_sequences: int = setting(64, "sequences a validation", least=1)
    checkpoint_every: int = setting(200, "steps between checkpoints", least=1)
    keep_checkpoints: int = setting(3, "checkpoints kept, the newest first", least=1)
    dtype: str = setting(
        "auto",
        "compute type; auto: bfloat16 where a probe says that it pays",
        choices=("auto", "float32", "bfloat16"),
    )
    threads: int = setting(0, "torch threads; 0 takes all cores", least=0)
    seed: int = setting(0, "seed of initial weights and of the order of data", least=0)


@dataclass(frozen=True)
class SwarmConfig:
    """What a swarm agrees on at its founding; all of it is fixed by the genesis."""

    peers: int = setting(7, "voters at the founding", least=1, most=64)
    inner_steps: int = setting(20, "H: local steps a round", least=1, most=10_000)
    codec: str = setting(
        "dense-int8",
        "how contributions are encoded; sparse-2bit derives an outer step that suits it",
        choices=("dense-int8", "dense-int4", "sparse-2bit", "none"),
    )
    rule: str = setting(
        "robust",
        "aggregation: robust, cheap, mean, or parts joined by + (docs/learning.md lists them)",
    )
    outer_learning_rate: float = setting(0.7, "outer Nesterov step", least=0.0, most=4.0)
    outer_momentum: float = setting(0.5, "outer Nesterov momentum", least=0.0, most=0.999)
    outer_schedule: str = setting(
        "1", "factors of the outer step, each for an equal part of the run, such as 1,0.65,0.4"
    )
    feedback: float = setting(1.0, "decay of the error-feedback residual", least=0.0, most=1.0)
    texts: str = setting(
        "alike",
        "whether peers train on text of one kind; unlike derives scores that suit it",
        choices=("alike", "unlike"),
    )
    harm_micronats: int = setting(500, "theta: loss rise that counts as harm", least=0)
    score_sequences: int = setting(2, "held-out sequences a score", least=1)
    contributions_min: int = setting(2, "K_min: fewer make a null round", least=1)
    contributions_max: int = setting(32, "K_max: most contributions a round", least=1, most=64)
    admission: str = setting(
        "open", "who may join: anyone a voter meets, or nobody", choices=("open", "closed")
    )
    vouchers: int = setting(1, "k_v: voters that must vouch for a newcomer", least=1, most=8)
    joins_per_epoch: int = setting(
        100, "most admissions in 100 rounds; 0: a tenth of the members", least=0, most=65_535
    )
    joins_per_voucher: int = setting(
        2, "most admissions in 100 rounds on one voter's vouchers; 0: any", least=0, most=65_535
    )
    idle_rounds_max: int = setting(
        30, "a voter away for so many rounds in a row is suspended; 0: never", least=0, most=65_535
    )
    audits: float = setting(
        0.0,
        "p_audit: share of contributions whose training others repeat; all need the same text",
        least=0.0,
        most=1.0,
    )
    text_digest: str = setting(
        "", "BLAKE3 of the tokens that all train on; the founding derives it where there are audits"
    )
    sources: str = setting(
        "", "whose the held-out tokens are, by name and number; the founding derives it"
    )
    privacy_noise: float = setting(
        0.0,
        "noise on every contribution, as a share of 2 * privacy_clip; 0: none (docs/privacy.md)",
        least=0.0,
        most=1_000.0,
    )
    privacy_clip: float = setting(
        1.0, "longest update where noise is added", least=1e-6, most=1_000_000.0
    )
    privacy_delta: float = setting(1e-5, "delta at which epsilon is told", least=1e-12, most=0.1)
    train_seconds_max: float = setting(600.0, "longest local training of a round", least=1.0)
    staleness: int = setting(
        0, "rounds that a peer trains ahead of the vote; 1: it never waits for it", least=0, most=1
    )


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    size: str = setting(
        "tiny", "preset that derives the rest", choices=("nano", "tiny", "small", "medium")
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    swarm: SwarmConfig = field(default_factory=SwarmConfig)


# What `swarm.codec` derives. Outer momentum hurts where few values are sent (arXiv 2603.08163).
CODECS: dict[str, dict[str, Any]] = {
    "sparse-2bit": {
        "swarm.outer_learning_rate": 1.0,
        "swarm.outer_momentum": 0.0,
        "swarm.outer_schedule": "1,0.65,0.4",
        "swarm.feedback": 0.95,
    },
}

# What `swarm.texts` derives. On unlike text an honest update may do harm to a few sequences of
# another kind: more of them are looked at, and only what does much harm is refused.
TEXTS: dict[str, dict[str, Any]] = {
    "unlike": {"swarm.harm_micronats": 10_000, "swarm.score_sequences": 6},
}

# What `--size` derives; everything not named keeps its default. Values by dotted field name.
SIZES: dict[str, dict[str, Any]] = {
    "nano": {
        "model.hidden_size": 128,
        "model.intermediate_size": 384,
        "model.num_layers": 4,
        "model.num_heads": 4,
        "model.num_kv_heads": 2,
        "model.head_dim": 32,
        "model.max_positions": 128,
        "training.sequence_length": 128,
        "data.vocab_size": 1_024,
    },
    "tiny": {},
    "small": {
        "model.hidden_size": 512,
        "model.intermediate_size": 1_536,
        "model.num_layers": 12,
        "model.num_heads": 8,
        "model.num_kv_heads": 4,
        "model.max_positions": 512,
        "training.sequence_length": 512,
        "data.vocab_size": 8_192,
        "optimizer.learning_rate": 1e-3,
    },
    "medium": {
        "model.hidden_size": 1_024,
        "model.intermediate_size": 3_072,
        "model.num_layers": 24,
        "model.num_heads": 16,
        "model.num_kv_heads": 8,
        "model.max_positions": 1_024,
        "training.sequence_length": 1_024,
        "data.vocab_size": 32_768,
        "optimizer.learning_rate": 6e-4,
    },
}
