"""Every setting of a run: frozen dataclasses, one page, all defaults here and nowhere else.

Each field carries what is allowed in its metadata, so that validation, `config show` and the
documentation read the same table. Precedence when settings are combined (see `settings.py`):
defaults < `--size` < `--family` < `optimizer.name` < `swarm.codec` < `swarm.texts` < JSON files
< environment `PEERFORMER_…` < command line.
"""

from dataclasses import dataclass, field
from typing import Any


def setting(default: Any, help: str, **allowed: Any) -> Any:
    """A dataclass field with its help text and what is allowed: `least`, `most`, `choices`."""
    return field(default=default, metadata={"help": help, **allowed})


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the decoder-only transformer; the defaults are Qwen3's layout."""

    # The upper bounds keep the sizes that a hostile checkpoint names within 64-bit numbers.
    vocab_size: int = setting(
        0, "tokens in the vocabulary; 0 takes the tokenizer's", least=0, most=2**40
    )
    hidden_size: int = setting(256, "width D of the residual stream", least=8, most=2**18)
    intermediate_size: int = setting(768, "hidden width F of the feed-forward", least=8, most=2**22)
    num_layers: int = setting(6, "number of blocks", least=1, most=512)
    num_heads: int = setting(4, "query heads H", least=1, most=2**14)
    num_kv_heads: int = setting(2, "key-value heads; divides num_heads", least=1, most=2**14)
    head_dim: int = setting(64, "width K of one head; even", least=2, most=2**14)
    max_positions: int = setting(256, "longest context in tokens", least=8)
    rope_theta: float = setting(10_000.0, "base of the rotary frequencies", least=1.0, most=1e12)
    rms_norm_epsilon: float = setting(1e-6, "added under the root of each norm", least=0.0)
    tie_embeddings: bool = setting(True, "share the embedding with the output head")
    # What each layer sees, and how its attention is made; docs/model.md has the sources.
    attention_layers: str = setting(
        "full", "full, window or blocks, or several joined by commas, repeated over the layers"
    )
    sliding_window: int = setting(0, "keys that a window layer sees, its own among them", least=0)
    sparse_block_size: int = setting(64, "tokens of a block of a blocks layer", least=1)
    sparse_local_blocks: int = setting(
        2, "nearest blocks that it sees, its own among them", least=1
    )
    sparse_stride: int = setting(4, "it sees each so-manieth block before; 0: none", least=0)
    sparse_global_blocks: int = setting(1, "first blocks of the text, seen by all", least=0)
    qk_norm: bool = setting(True, "norm queries and keys in each head")
    attention_bias: bool = setting(False, "biases in the four projections of attention")
    attention_sinks: bool = setting(False, "a learned logit per head that takes attention away")
    # Positions.
    positions: str = setting(
        "rotary",
        "how a token knows its place",
        choices=("rotary", "learned", "sinusoidal", "none"),
    )
    rope_scaling: str = setting(
        "none",
        "how rotary positions are stretched",
        choices=("none", "linear", "yarn", "llama3"),
    )
    rope_factor: float = setting(1.0, "stretch of the context by rope_scaling", least=1.0, most=1e6)
    rope_original_positions: int = setting(
        0, "context before yarn or llama3 stretch it; 0: max_positions / rope_factor", least=0
    )
    rope_attention_factor: float = setting(
        0.0, "yarn: factor of cosines and sines; 0: 0.1 ln(rope_factor) + 1", least=0.0, most=1e3
    )
    rope_beta_fast: float = setting(
        32.0, "yarn: turns from which a pair is kept", least=1e-3, most=1e6
    )
    rope_beta_slow: float = setting(
        1.0, "yarn: turns up to which it is stretched", least=1e-3, most=1e6
    )
    rope_low_frequency_factor: float = setting(
        1.0, "llama3: turns up to which a pair is stretched", least=1e-3, most=1e6
    )
    rope_high_frequency_factor: float = setting(
        4.0, "llama3: turns from which a pair is kept", least=1e-3, most=1e6
    )
    # Norms, feed-forward, dropout.
    norm: str = setting("rms", "RMSNorm or LayerNorm", choices=("rms", "layer"))
    norm_placement: str = setting(
        "pre", "norm what a layer reads, or the residual after it", choices=("pre", "post")
    )
    feed_forward: str = setting(
        "swiglu",
        "gated by SiLU, or one activation; gelu-tanh is GPT-2's, relu2 is squared",
        choices=("swiglu", "gelu", "gelu-tanh", "relu", "relu2"),
    )
    mlp_bias: bool = setting(False, "biases in the feed-forward")
    attention_dropout: float = setting(0.0, "of attention weights", least=0.0, most=0.9)
    residual_dropout: float = setting(0.0, "of what a layer adds", least=0.0, most=0.9)
    embedding_dropout: float = setting(0.0, "of the embedding", least=0.0, most=0.9)
    # Mixture of experts, under Hugging Face's names where it has some.
    num_experts: int = setting(0, "experts E of a sparse layer; 0: dense layers", least=0, most=512)
    num_experts_per_tok: int = setting(
        2, "experts that a token is sent to (top-k)", least=1, most=512
    )
    moe_intermediate_size: int = setting(
        0,
        "hidden width of one expert; 0: intermediate_size / num_experts_per_tok",
        least=0,
        most=2**22,
    )
    norm_topk_prob: bool = setting(True, "let the weights of a token's experts add up to 1")
    shared_expert_intermediate_size: int = setting(
        0, "hidden width of an expert that every token goes through; 0: none", least=0, most=2**22
    )
    decoder_sparse_step: int = setting(1, "every so many layers one is sparse", least=1, most=512)
    mlp_only_layers: str = setting(
        "", "layers that stay dense, counted from 0, such as 0,5; none: as decoder_sparse_step says"
    )
    router_aux_loss_coef: float = setting(
        0.02, "weight of the load-balancing loss; 0: none", least=0.0
    )
    router_z_loss_coef: float = setting(0.001, "weight of the router z-loss; 0: none", least=0.0)
    router_bias_update_rate: float = setting(
        0.0, "step of the bias that balances without a loss; 0: no bias", least=0.0, most=1.0
    )
    moe_capacity_factor: float = setting(
        0.0, "tokens an expert takes in training, in fair shares; 0: all (dropless)", least=0.0
    )

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """What each layer sees: `attention_layers`, repeated until every layer has its kind."""
        kinds = [kind.strip() for kind in self.attention_layers.split(",")]
        return tuple(kinds[layer % len(kinds)] for layer in range(self.num_layers))

    @property
    def expert_size(self) -> int:
        """Hidden width of one expert."""
        derived = self.intermediate_size // self.num_experts_per_tok
        return self.moe_intermediate_size or max(1, derived)

    @property
    def dense_layers(self) -> frozenset[int]:
        """The layers that `mlp_only_layers` names; empty if it cannot be read."""
        words = [word.strip() for word in self.mlp_only_layers.split(",") if word.strip()]
        return frozenset(int(word) for word in words if word.isdecimal() and word.isascii())

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer, counted from 0, has experts (Qwen3-MoE's rule)."""
        in_turn = (layer + 1) % self.decoder_sparse_step == 0
        return self.num_experts > 0 and in_turn and layer not in self.dense_layers

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """The layers that have experts."""
        return tuple(layer for layer in range(self.num_layers) if self.is_sparse(layer))


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
    column: str = setting("text", "column of tables, or field of JSON objects, that is the text")
    dataset_config: str | None = setting(None, "configuration of a Hugging Face dataset")
    dataset_split: str = setting("train", "split of a Hugging Face dataset")
    deduplicate: str = setting(
        "none",
        "leave out documents that are equal to an earlier one, or nearly so",
        choices=("none", "exact", "near"),
    )
    near_duplicate_threshold: float = setting(
        0.8, "share of common word 5-grams that makes a near duplicate", least=0.3, most=1.0
    )
    characters_min: int = setting(0, "leave out shorter documents", least=0)
    characters_max: int = setting(0, "leave out longer documents; 0: none", least=0)
    line_characters_max: int = setting(
        0, "leave out documents with a longer line; 0: none", least=0
    )
    symbol_share_max: float = setting(
        1.0, "leave out documents with a larger share of signs", least=0.0, most=1.0
    )
    digit_share_max: float = setting(
        1.0, "leave out documents with a larger share of digits", least=0.0, most=1.0
    )
    repeated_line_share_max: float = setting(
        1.0, "leave out documents with a larger share of repeated lines", least=0.0, most=1.0
    )
    repeated_words_share_max: float = setting(
        1.0, "leave out documents with a larger share of repeated word 5-grams", least=0.0, most=1.0
    )
    workers: int = setting(
        0, "processes that turn text into tokens; 0: one a core, 16 at most", least=0
    )
    folds: int = setting(
        0, "hold out one of so many parts of the documents, by hash; 0: a share", least=0, most=100
    )
    fold: int = setting(0, "which part is held out, counted from 0", least=0, most=99)
    tokenizer_kind: str = setting(
        "byte-bpe",
        "kind of a tokenizer trained here",
        choices=("byte-bpe", "bpe", "unigram"),
    )
    special_tokens: str = setting(
        "", "special tokens of a tokenizer trained here, such as <|user|>,<|tool|>"
    )
    pairs: str = setting(
        "auto",
        "what divides prompt and completion in each line of a text file; auto: found per file",
        choices=("auto", "off", "|", "*", "#"),
    )
    chat_template: str | None = setting(
        None, "Jinja file that puts messages into one text; none: the tokenizer's, or our own"
    )
    document_masks: bool = setting(
        False, "let a token see its own document only, where a sequence holds several"
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """The inner optimizer: Muon on matrices with AdamW on the rest, or one rule on everything."""

    name: str = setting(
        "muon",
        "inner optimizer; lion and sgd derive a learning rate that suits them",
        choices=("muon", "adamw", "lion", "sgd"),
    )
    learning_rate: float = setting(3e-3, "peak learning rate of all but Muon", least=0.0)
    muon_learning_rate: float = setting(0.02, "peak learning rate of Muon", least=0.0)
    weight_decay: float = setting(
        0.01, "weight decay on matrices; decoupled, but for sgd", least=0.0
    )
    beta1: float = setting(
        0.9,
        "first-moment decay of AdamW; Lion's share of the momentum in a step",
        least=0.0,
        most=1.0,
    )
    beta2: float = setting(
        0.95, "second-moment decay of AdamW; decay of Lion's momentum", least=0.0, most=1.0
    )
    epsilon: float = setting(1e-8, "AdamW's denominator guard", least=0.0)
    muon_momentum: float = setting(0.95, "Muon's Nesterov momentum", least=0.0, most=1.0)
    clip_norm: float = setting(1.0, "gradient norm ceiling; 0 turns clipping off", least=0.0)
    momentum: float = setting(0.9, "momentum of sgd; 0: none", least=0.0, most=1.0)
    nesterov: bool = setting(False, "sgd looks ahead along its momentum")
    sharpness: str = setting(
        "none",
        "seek flat minima by a second pass a step: SAM or ASAM around the optimizer",
        choices=("none", "sam", "asam"),
    )
    sharpness_rho: float = setting(
        0.0, "how far SAM and ASAM climb; 0: 0.05 and 0.5, as in their papers", least=0.0
    )
    sharpness_eta: float = setting(0.01, "added to the size of a value by ASAM", least=0.0)


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
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    threads: int = setting(0, "torch threads; 0 takes all cores", least=0)
    seed: int = setting(0, "seed of initial weights and of the order of data", least=0)
    schedule: str = setting(
        "linear",
        "learning rate after the warm-up (docs/training.md draws them)",
        choices=("linear", "cosine", "wsd", "constant", "inverse-sqrt", "plateau"),
    )
    decay_fraction: float = setting(
        0.2, "share of the steps that decay at the end of wsd", least=0.0, most=1.0
    )
    plateau_patience: int = setting(
        2, "validations in a row that may be no better before plateau cuts the rate", least=0
    )
    plateau_factor: float = setting(0.5, "by what plateau cuts the rate", least=0.0, most=0.99)
    patience: int = setting(
        0, "stop after so many validations in a row that are no better; 0: never", least=0
    )
    ema_decay: float = setting(
        0.0,
        "decay of averaged weights, which are validated and saved as the model; 0: none",
        least=0.0,
        most=0.999_999,
    )
    loss_scale: float = setting(
        65_536.0, "first scale of the loss in float16", least=1.0, most=4_294_967_296.0
    )
    deterministic: bool = setting(
        False, "allow only deterministic kernels: a rerun gives the same bits on this machine"
    )
    sample_prompt: str | None = setting(
        None, "text that the model continues now and then while it trains; none: no samples"
    )
    sample_every: int = setting(100, "steps between samples", least=1)
    sample_tokens: int = setting(40, "tokens of a sample", least=1, most=4_096)
    peak_gflops: float = setting(
        0.0, "GFLOP/s of this machine, for utilisation; 0: measured by a short probe", least=0.0
    )
    base: str | None = setting(
        None, "checkpoint, run or Hugging Face directory to start from (--from); none: anew"
    )
    checkpoint_activations: str = setting(
        "none",
        "what the backward pass computes again, so that it need not be kept",
        choices=("none", "blocks", "attention", "feed_forward"),
    )
    quantise: str = setting(
        "none",
        "train with weights rounded to 8 or 4 bits, as they will be exported",
        choices=("none", "int8", "int4"),
    )
    quantise_layers: str = setting(
        "all", "layers whose weights are rounded: all, attention, feed_forward, or names with ,"
    )
    engine: str = setting(
        "auto",
        "how ranks train together: ddp, fsdp (divides the model) or mpi; auto: ddp",
        choices=("auto", "ddp", "fsdp", "mpi"),
    )
    backend: str = setting(
        "auto",
        "what ddp and fsdp send with; auto: nccl where every rank has a GPU, else gloo",
        choices=("auto", "gloo", "nccl"),
    )
    hang_seconds: float = setting(
        300.0, "a rank that is silent or holds others up for so long is given up", least=2.0
    )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on a frozen model; a rank of 0 trains the whole of it."""

    rank: int = setting(0, "r: rank of the adapters; 0: none", least=0, most=1_024)
    alpha: float = setting(16.0, "an adapter's output is scaled by alpha / rank", least=0.0)
    dropout: float = setting(0.0, "dropout before an adapter", least=0.0, most=0.9)
    targets: str = setting(
        "all", "layers that get one: all, attention, feed_forward, or names with , between them"
    )


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
        "open",
        "who may join: anyone a voter meets, only whom a voter invited, or nobody",
        choices=("open", "invite", "closed"),
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
        "tiny",
        "preset that derives the rest",
        choices=("nano", "tiny", "small", "medium", "large"),
    )
    family: str = setting(
        "qwen3",
        "kind of model: what it is made of, whatever its size",
        choices=("qwen3", "qwen3-moe", "llama", "gpt2-classic"),
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    swarm: SwarmConfig = field(default_factory=SwarmConfig)


# The special tokens that end a text, ours first, then those of other makers.
TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
