"""Real replicas for a world: the production bench on a model of a few thousand parameters.

Everything is what a node runs: local steps, 8-bit contributions with error feedback, scores on
held-out text, integer aggregation, states in proven chunks. Only the sizes are small and the
tokens are bytes. With a `Learning` all hosts share one text, of which the beacon assigns each its
windows, or each has one of its own; without, each has a few stories made from the seed and its key.
A crash costs a host the optimizer's state. Each state that becomes agreed on a host is measured,
equal bytes once, and all hosts must find the same.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
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
from peerformer.data.synthetic import synthetic_documents
from peerformer.gradients.compress import encoded_size
from peerformer.gradients.fixed_point import AgreedState
from peerformer.model.transformer import Transformer, initialise
from peerformer.protocol.identity import hash_of
from peerformer.simulate import texts
from peerformer.simulate.invariants import Violation
from peerformer.simulate.learning import END_OF_TEXT, VOCAB_SIZE, Learning
from peerformer.train.agreed import AgreedReplica, initial_state
from peerformer.train.evaluate import evaluate
from peerformer.train.poison import backdoor_answered
from peerformer.train.recipe import recipe_bytes, recipe_config

STORIES_A_HOST, STORIES_HELD_OUT = 24, 12  # some 400 bytes each
VALIDATION_SEQUENCES = 16
VALIDATION_SEQUENCES_LEARNING = 128  # differences of a hundredth are looked for
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

    def __init__(
        self,
        seed: int,
        staleness: int = 0,
        learning: Learning | None = None,
        *,
        audited: bool = False,
    ) -> None:
        """Make the first model and the held-out text of a seed; with audits, one text for all."""
        torch.set_num_threads(1)  # such small tensors are only slower on more
        self.seed, self.learning = seed, learning
        config = replace(
            TINY,
            training=replace(TINY.training, seed=seed),
            swarm=replace(TINY.swarm, staleness=staleness),
        )
        if learning is not None:
            config = learning.config(seed, staleness)
        config = replace(config, swarm=replace(config.swarm, audits=float(audited)))
        self.recipe = recipe_bytes(config)
        self.config = recipe_config(self.recipe, threads=1)
        model = Transformer(self.config.model)
        initialise(model, seed)
        self.first = initial_state(model)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.kinds: dict[bytes, str] = {}  # of the texts of hosts that have unlike ones
        self.shared = self._batches(texts.documents(texts.PROSE)[0]) if learning else None
        self.held_out = self._held_out()
        self.parts: dict[str, Batches] = {}  # the held-out text of each kind, where they are unlike
        if learning is not None and learning.unlike:
            parts = self._held_out_parts()
            self.parts = {kind: self._batches([part]) for kind, part in parts.items()}
        self.bits_per_byte: dict[int, float] = {}  # of the agreed state, by round
        self.by_kind: dict[str, float] = {}  # of the newest one, where texts are unlike
        self.backdoor_answered = 0.0  # by the newest one
        self.measured: dict[int, bytes] = {}  # the state root that this was found of
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
        text = self._text(me)
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

    def _text(self, me: bytes) -> Batches:
        """Return what a host trains on."""
        if self.learning is None or self.shared is None:
            whose = "all" if self.config.swarm.audits else me.hex()
            return self._stories(whose, STORIES_A_HOST)
        if not self.learning.unlike:
            return self.shared
        kind = self.kinds.setdefault(me, texts.KINDS[len(self.kinds) % len(texts.KINDS)])
        return self._batches(texts.own_part(kind, self.seed, me))

    def _held_out(self) -> Batches:
        if self.learning is None:
            return self._stories("held out", STORIES_HELD_OUT)
        return self._batches(self._held_out_parts().values())

    def _held_out_parts(self) -> dict[str, str]:
        """Return as much of each kind of text that peers train on."""
        unlike = self.learning is not None and self.learning.unlike
        kinds = texts.KINDS if unlike else (texts.PROSE,)
        parts = {kind: "".join(texts.documents(kind)[1]) for kind in kinds}
        least = min(map(len, parts.values()))
        return {kind: part[:least] for kind, part in parts.items()}

    def _stories(self, whose: str, stories: int) -> Batches:
        """Make stories of the seed and a name."""
        digest = hash_of("world text", str(self.seed).encode(), whose.encode())
        number = int.from_bytes(digest[:8], "little")
        return self._batches([document.text for document in synthetic_documents(number, stories)])

    def _batches(self, documents: Iterable[str]) -> Batches:
        return Batches(texts.shards(documents), self.config.training.sequence_length)

    def _measure(self, replica: AgreedReplica, served: ServedState) -> None:
        """Note how good an agreed state is; every host must find the same."""
        if self.measured.get(served.round) == served.tree.root:
            return
        byte_lengths_V = np.ones(VOCAB_SIZE, dtype=np.int32)
        byte_lengths_V[END_OF_TEXT] = 0
        sequences = VALIDATION_SEQUENCES_LEARNING if self.learning else VALIDATION_SEQUENCES
        model = replica.agreed_model()

        def bits_of(text: Batches) -> float:
            found = evaluate(model, text, sequences=sequences, byte_lengths_V=byte_lengths_V)
            return found.bits_per_byte

        found = bits_of(replica.held_out)
        self.by_kind = {kind: bits_of(text) for kind, text in self.parts.items()}
        windows = np.stack([window.tokens for window in replica.held_out.validation(sequences)])
        self.backdoor_answered = backdoor_answered(
            model, torch.from_numpy(windows[:, :-1]), self.config.model.vocab_size
        )
        self.measured.setdefault(served.round, served.tree.root)
        known = self.bits_per_byte.setdefault(served.round, found)
        if known != found:
            what = f"round {served.round}: {known} and {found} bits per byte"
            raise Violation(self.seed, "equal state, equal model", what)
