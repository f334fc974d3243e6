"""How a real world learns: codec, rule, steps a round, whose text, with the filter or without.

Without one of these a real world trains the smallest model on stories of its own making. Knows no
tensor: what cannot be is refused before a world is made.
"""

from dataclasses import dataclass

from peerformer.config import Config
from peerformer.errors import ConfigError
from peerformer.protocol.genesis import Limits
from peerformer.settings import resolve
from peerformer.train.recipe import rule_of

END_OF_TEXT = 256  # after the bytes
VOCAB_SIZE = 257
HARM_MICRONATS_ANY = (1 << 32) - 1  # no score is so low: nothing is refused for the harm it does
# Some tens of thousands of parameters: 200 steps take a core seconds, and show what was learned.
SHAPE = {
    "model.vocab_size": VOCAB_SIZE,
    "model.hidden_size": 32,
    "model.intermediate_size": 96,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_dim": 16,
    "model.max_positions": 64,
    "data.vocab_size": VOCAB_SIZE,
    "training.sequence_length": 64,
    "training.batch_size": 8,
    "training.warmup_steps": 10,
}


@dataclass(frozen=True, slots=True)
class Learning:
    """What a swarm would have fixed at its founding.

    Attributes:
        codec: how contributions are encoded.
        rule: how they are combined; empty for what suits the texts.
        inner_steps: H, local steps a round.
        unlike: each peer has a text of its own, of one of three kinds, and scores are those that
            suit it; else all share one.
        filters: contributions that scorers see do harm are refused.
    """

    codec: str = "dense-int8"
    rule: str = ""
    inner_steps: int = 10
    unlike: bool = False
    filters: bool = True

    def config(self, seed: int = 0, staleness: int = 0) -> Config:
        """Return all settings.

        Raises:
            ConfigError: there is no such codec or rule, or no such number of steps.
        """
        given: dict[str, object] = {
            "training.seed": seed,
            "swarm.codec": self.codec,
            "swarm.texts": "unlike" if self.unlike else "alike",
            "swarm.inner_steps": self.inner_steps,
            "swarm.staleness": staleness,
        }
        if self.rule:
            given["swarm.rule"] = self.rule
        config = resolve(size="nano", overrides=SHAPE | given).config
        rule_of(config)
        return config

    @property
    def harm_micronats(self) -> int:
        """The rise of the loss from which on a contribution is refused."""
        return self.config().swarm.harm_micronats if self.filters else HARM_MICRONATS_ANY

    def contributions_least(self, peers: int | None) -> int:
        """Return how many contributions a round needs.

        Raises:
            ConfigError: so few peers cannot feed the rule.
        """
        config = self.config()
        least = rule_of(config).contributions_least
        if peers is not None and peers < least:
            raise ConfigError(
                f"the rule {config.swarm.rule} needs {least} contributions,"
                f" and there are {peers} peers",
                hint=f"--peers {least}, or --rule robust",
            )
        return max(least, Limits().contributions_min)
