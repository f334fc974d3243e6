"""What one setting derives for others: `--size`, `--family`, and choices with rates of their own.

Tables of values by dotted field name; everything not named keeps its default in `config.py`. In
which order they are laid over each other is told there.
"""

from dataclasses import dataclass
from typing import Any

# What `swarm.codec` derives. Outer momentum hurts where few values are sent (arXiv 2603.08163).
CODECS: dict[str, dict[str, Any]] = {
    "sparse-2bit": {
        "swarm.outer_learning_rate": 1.0,
        "swarm.outer_momentum": 0.0,
        "swarm.outer_schedule": "1,0.65,0.4",
        "swarm.feedback": 0.95,
    },
}

# What `optimizer.name` derives: Lion moves every value by the whole rate (arXiv 2302.06675, table
# 12), and SGD only by the gradient, which is short where the loss is nearly flat.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "lion": {
        "optimizer.learning_rate": 3e-4,
        "optimizer.beta2": 0.99,
        "optimizer.weight_decay": 0.1,
    },
    "sgd": {"optimizer.learning_rate": 0.3},
}

# What `swarm.texts` derives. On unlike text an honest update may do harm to a few sequences of
# another kind: more of them are looked at, and only what does much harm is refused. And mixing and
# trimming take the few who hold the rarest kind for liars, where clipping leaves them their weight.
TEXTS: dict[str, dict[str, Any]] = {
    "unlike": {
        "swarm.rule": "equal-norms+centred-clipping",
        "swarm.harm_micronats": 100_000,
        "swarm.score_sequences": 6,
    },
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
    "large": {
        "model.hidden_size": 2_048,
        "model.intermediate_size": 6_144,
        "model.num_layers": 28,
        "model.num_heads": 16,
        "model.num_kv_heads": 8,
        "model.head_dim": 128,
        "model.max_positions": 2_048,
        "training.sequence_length": 2_048,
        "data.vocab_size": 65_536,
        "optimizer.learning_rate": 3e-4,
    },
}


@dataclass(frozen=True)
class Times:
    """A derived value: so many times another setting, whatever that one becomes."""

    setting: str
    factor: int = 1


# What `--family` derives over `--size`: Qwen3 (2025), Llama (2023), GPT-2 (2019). A value that is
# given by hand stays.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3-moe": {"model.num_experts": 8},
    "llama": {"model.qk_norm": False, "model.rms_norm_epsilon": 1e-5},
    "gpt2-classic": {
        "model.num_kv_heads": Times("model.num_heads"),
        "model.intermediate_size": Times("model.hidden_size", 4),
        "model.qk_norm": False,
        "model.attention_bias": True,
        "model.positions": "learned",
        "model.norm": "layer",
        "model.rms_norm_epsilon": 1e-5,
        "model.feed_forward": "gelu-tanh",
        "model.mlp_bias": True,
    },
}
