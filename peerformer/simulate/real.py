"""Real replicas for a world: the production bench on a model of a few thousand parameters.

Everything is what a node runs: local steps, 8-bit contributions with error feedback, scores on
held-out text, integer aggregation, states in proven chunks. Only the sizes are small and the
tokens are bytes. Each host has a text of its own, made from the seed and its key; a crash costs it
the optimizer's state. Each state that becomes agreed on a host is measured there, and all hosts
must find the same.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from peerformer.bench import ServedState, TensorBench
from peerformer.config import (
    Config,
    DataConfig,
    ModelConfig,
    SwarmConfig,
    TrainingConfig,
)
from peerformer.data.batches import Batches
from peerformer.data.shards import ShardSet
from peerformer.data.synthetic import synthetic_documents
from peerformer.gradients.compress import encoded_size
from peerformer.gradients.fixed_point import AgreedState
from peerformer.model.transformer import Transformer, initialise
from peerformer.protocol.identity import hash_of
from peerformer.simulate.invariants import Violation
from peerformer.train.agreed import AgreedReplica, initial_state
from peerformer.train.evaluate import evaluate
from peerformer.train.recipe import recipe_bytes, recipe_config

END_OF_TEXT = 256  # after the bytes
VOCAB_SIZE = 257
STORIES_A_HOST, STORIES_HELD_OUT = 24, 12  # some 400 bytes each
VALIDATION_SEQUENCES = 16
TINY = Config(
    size="nano",
    model=ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        max_positions=32,
    ),
    data=DataConfig(vocab_size=VOCAB_SIZE),
    training=TrainingConfig(batch_size=4, sequence_length=32, warmup_steps=4),
    swarm=SwarmConfig(inner_steps=8),
)


class RealReplicas:
    """What a world needs to know of its benches: these hold tensors."""

    def __init__(self, seed: int, staleness: int = 0, *, audited: bool = False) -> None:
        """Make the first model and the held-out text of a seed; with audits, one text for all."""
        torch.set_num_threads(1)  # such small tensors are only slower on more
        self.seed = seed
        config = replace(
            TINY,
            training=replace(TINY.training, seed=seed),
            swarm=replace(TINY.swarm, staleness=staleness, audits=float(audited)),
        )
        self.recipe = recipe_bytes(config)
        self.config = recipe_config(self.recipe, threads=1)
        model = Transformer(self.config.model)
        initialise(model, seed)
        self.first = initial_state(model)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.held_out = self._text("held out", STORIES_HELD_OUT)
        self.bits_per_byte: dict[int, float] = {}  # of the agreed state, by round
        self.updates: dict[int, list[Tensor]] = {}  # of honest peers, by round: liars see them

    @property
    def state_size(self) -> int:
        """Bytes of an agreed state."""
        return len(self.first.to_bytes())

    @property
    def blob_size_max(self) -> int:
        """Bytes of the largest contribution."""
        return encoded_size(self.parameters, self.config.swarm.codec)

    def first_state(self) -> bytes:
        """Return the agreed state of round 0."""
        return self.first.to_bytes()

    def bench(self, me: bytes, life: int, *, poisons: bool) -> TensorBench:
        """Return a bench at round 0; one that poisons sends the opposite of what it trained."""
        model, scorer = Transformer(self.config.model), Transformer(self.config.model)
        shared = self.config.swarm.audits > 0
        text = self._text("all" if shared else me.hex(), STORIES_A_HOST)
        state = AgreedState.from_bytes(self.first_state(), self.parameters)
        replica = AgreedReplica(self.config, model, scorer, state, text, self.held_out)
        replica.on_update = self._note_update
        replica.honest_updates = lambda number: self.updates.get(number, [])
        bench = TensorBench(replica, on_state=lambda served: self._measure(replica, served))
        if poisons:
            bench.poison_from("sign-flip", 0)
        return bench

    def state_of(self, bench: Any) -> tuple[int, bytes]:
        """Return the round and the bytes of the bench's agreed state."""
        return bench.replica.round, bench.replica.state.to_bytes()

    def _note_update(self, number: int, update_P: Tensor) -> None:
        self.updates.setdefault(number, []).append(update_P)
        self.updates.pop(number - 2, None)

    def _text(self, whose: str, stories: int) -> Batches:
        """Make stories of the seed and a name into bytes with their ends marked."""
        digest = hash_of("world text", str(self.seed).encode(), whose.encode())
        number = int.from_bytes(digest[:8], "little")
        tokens: list[int] = []
        for document in synthetic_documents(number, stories):
            tokens += [*document.text.encode(), END_OF_TEXT]
        array = np.array(tokens, dtype=np.uint16)
        digest_of_text = blake3(array.tobytes()).hexdigest()
        shards = ShardSet((array,), VOCAB_SIZE, len(tokens) - stories, digest_of_text)
        return Batches(shards, self.config.training.sequence_length)

    def _measure(self, replica: AgreedReplica, served: ServedState) -> None:
        """Note how good an agreed state is; every host must find the same."""
        byte_lengths_V = np.ones(VOCAB_SIZE, dtype=np.int32)
        byte_lengths_V[END_OF_TEXT] = 0
        found = evaluate(
            replica.agreed_model(),
            replica.held_out,
            sequences=VALIDATION_SEQUENCES,
            byte_lengths_V=byte_lengths_V,
        ).bits_per_byte
        known = self.bits_per_byte.setdefault(served.round, found)
        if known != found:
            what = f"round {served.round}: {known} and {found} bits per byte"
            raise Violation(self.seed, "equal state, equal model", what)
