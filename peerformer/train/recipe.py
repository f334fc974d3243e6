"""How a swarm trains, as its genesis carries it: canonical JSON of what must be alike.

The protocol binds these bytes and never opens them. Only what all peers must share stands here;
where a peer's text lies, and how many threads it uses, is its own affair.

Who brings a module of their own (`peerformer.Swarm`), or agrees on gradients alone
(`peerformer.Coordinator`), founds a swarm of another kind: its recipe has no model and no text, but
the digest of a description of the tensors that are agreed on.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from peerformer.allowed import SETTINGS
from peerformer.config import Config, DataConfig
from peerformer.errors import ConfigError
from peerformer.gradients.rules import Rule
from peerformer.settings import from_json, to_json
from peerformer.train.outer import factors_of

RECIPE = "the swarm's recipe"
MODULE, GRADIENTS = "module", "gradients"
KINDS = {MODULE: "the parameters of a module", GRADIENTS: "gradients alone"}
API = {MODULE: "Swarm", GRADIENTS: "Coordinator"}

_SHARED = ("model", "optimizer", "training", "swarm", "size", "family")
_OWN_TRAINING = (
    *("threads", "dtype", "keep_checkpoints", "checkpoint_every", "validate_every"),
    *("engine", "backend", "hang_seconds"),  # of this peer's cluster, if it is one
)
# What a swarm cannot have, since its rounds are what is validated, judged and saved, and why.
_ALONE: dict[str, str] = {
    "training.schedule": "reducing on a plateau goes by one machine's validations",
    "training.patience": "when a swarm ends is for its voters, not for one machine's validations",
    "training.ema_decay": "the agreed state is what a swarm saves, and that is no average",
    "training.sample_prompt": "the local model of a round is in nobody's sight",
    "training.quantise": "a swarm agrees on weights that are not rounded",
    "lora.rank": "a swarm agrees on all weights of a model, and adapters freeze most of them",
    "training.deterministic": "machines differ, so what must be alike is computed in integers",
}


def recipe_bytes(config: Config) -> bytes:
    """Return the canonical recipe of a configuration."""
    everything = to_json(config)
    shared = {name: everything[name] for name in _SHARED}
    shared["training"] = {k: v for k, v in shared["training"].items() if k not in _OWN_TRAINING}
    shared["data"] = {"vocab_size": everything["data"]["vocab_size"]}  # the tokenizer's, as it was
    return json.dumps(shared, sort_keys=True, separators=(",", ":")).encode()


def check_recipe(config: Config) -> None:
    """Refuse settings that a swarm could only ignore.

    Raises:
        ConfigError: if there is one.
    """
    for name, why in _ALONE.items():
        section, _, key = name.partition(".")
        value, default = getattr(getattr(config, section), key), SETTINGS[name].default
        if value == default or (name == "training.schedule" and value != "plateau"):
            continue
        shown = "none" if default is None else str(default).lower()
        raise ConfigError(
            f"{name} is {value}, which a swarm cannot have",
            where=name,
            why=why,
            hint=f"--set {name}={shown}, or train alone: peerformer train",
        )


@dataclass(frozen=True, slots=True)
class ModuleRecipe:
    """How a swarm of the user's own module trains.

    Attributes:
        kind: MODULE or GRADIENTS.
        config: settings of the swarm, and of how long it trains; the rest is not used.
        description: BLAKE3 of the description of its tensors, in hexadecimal.
        scale: by what a gradient is divided before it is told, a power of two.
    """

    kind: str
    config: Config
    description: str
    scale: int = 1

    def to_bytes(self) -> bytes:
        """Return the canonical recipe."""
        shared = {
            "kind": self.kind,
            "swarm": asdict(self.config.swarm),
            "training": {"steps": self.config.training.steps},
            "description": self.description,
            "scale": self.scale,
        }
        return json.dumps(shared, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, recipe: bytes) -> "ModuleRecipe":
        """Read a recipe.

        Raises:
            ConfigError: if it is of a swarm with a text, or not one that this version can follow.
        """
        mapping = _mapping(recipe)
        kind = mapping.get("kind")
        if kind not in KINDS:
            raise ConfigError(
                "this swarm trains Peerformer's own model on text",
                hint="join it with: peerformer join TICKET",
            )
        try:
            settings = {"swarm": mapping["swarm"], "training": mapping["training"]}
            description, scale = str(mapping["description"]), int(mapping["scale"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError("the swarm's recipe is not whole", why=repr(error)) from error
        config = from_json(settings, where=RECIPE)
        rule_of(config)
        factors_of(config)
        return cls(kind, config, description, scale)


def swarm_config(recipe: bytes) -> Config:
    """Return the settings of a swarm of any kind: enough to read its contributions.

    Raises:
        ConfigError: if the recipe is not one that this version can follow.
    """
    if _mapping(recipe).get("kind") in KINDS:
        return ModuleRecipe.from_bytes(recipe).config
    return recipe_config(recipe)


def _mapping(recipe: bytes) -> dict[str, Any]:
    try:
        mapping = json.loads(recipe)
    except (ValueError, RecursionError) as error:  # nested without end, within its size
        raise ConfigError("the swarm's recipe is not JSON", why=str(error)) from error
    if not isinstance(mapping, dict):
        raise ConfigError("the swarm's recipe is no JSON object")
    return mapping


def rule_of(config: Config) -> Rule:
    """Return the rule by which a configuration combines contributions.

    Raises:
        ConfigError: if there is no such rule.
    """
    try:
        return Rule.named(config.swarm.rule)
    except ValueError as error:
        what, _, known = str(error).partition("; ")
        raise ConfigError(what, where="swarm.rule", hint=known) from error


def recipe_config(recipe: bytes, *, threads: int = 0, data: DataConfig | None = None) -> Config:
    """Return the configuration that a recipe stands for, with this peer's own settings.

    Raises:
        ConfigError: if the recipe is not one that this version can follow.
    """
    mapping = _mapping(recipe)
    if kind := KINDS.get(mapping.get("kind", "")):
        raise ConfigError(
            f"this swarm agrees on {kind}, which this command does not have",
            hint=f"join it from a program of yours: peerformer.{API[mapping['kind']]}.join(...)",
            more="docs/api.md",
        )
    config = from_json(mapping, where=RECIPE)
    rule_of(config)
    factors_of(config)
    check_recipe(config)
    training = replace(config.training, threads=threads)
    return replace(config, training=training, data=data or config.data)
