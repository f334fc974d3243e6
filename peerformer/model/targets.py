"""Which linear layers of a model are meant, by words: `all`, `attention`, `feed_forward`, or names.

Adapters and rounded weights go on the matrices of the blocks: not on embedding and head, nor on
the routers and experts of a mixture. Experts are many in one parameter, and what is meant to reach
them is refused rather than done to the rest. Knows nothing about what is done to a layer.
"""

import difflib
from collections.abc import Callable

from torch import nn

from peerformer.errors import ConfigError

PARTS = {"attention": "self_attn", "feed_forward": "mlp"}  # word -> the module of a block
ALL = "all"
MIXTURE = {"experts", "shared_expert", "gate"}  # modules of a mixture of experts


def linear_layers(model: nn.Module, words: str, setting: str) -> dict[str, nn.Linear]:
    """The layers that `words` mean, by their names in the model and in its order.

    Args:
        model: a transformer whose blocks are in `layers`.
        words: separated by commas; a name is the last part of a layer's, such as `q_proj`.
        setting: where the words come from, for errors.

    Raises:
        ConfigError: a word means no layer of this model, or experts of a mixture as well.
    """
    modules = [name.split(".") for name, _ in model.named_modules()]
    has_experts = any("experts" in parts for parts in modules)
    known = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and name.startswith("layers.")
        and not MIXTURE & set(name.split("."))
    }
    chosen: set[str] = set()
    for word in (part.strip() for part in words.split(",")):
        if has_experts and word in (ALL, "feed_forward"):
            raise ConfigError(
                f"{word!r} means the experts of a mixture as well, which this cannot do",
                where=setting,
                hint=f"--{setting} attention",
            )
        means = [name for name in known if _is_meant(word, name)]
        if not means:
            raise _meaningless(word, list(known), setting)
        chosen.update(means)
    return {name: layer for name, layer in known.items() if name in chosen}


def replace_layers(
    model: nn.Module, layers: dict[str, nn.Linear], by: Callable[[nn.Linear], nn.Module]
) -> None:
    """Put another module in the place of each layer; names and order of weights stay."""
    for name, layer in layers.items():
        model.set_submodule(name, by(layer))


def _is_meant(word: str, name: str) -> bool:
    parts = name.split(".")
    return word == ALL or word == parts[-1] or PARTS.get(word) in parts


def _meaningless(word: str, known: list[str], setting: str) -> ConfigError:
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in known))
    words = [ALL, *PARTS, *names]
    near = difflib.get_close_matches(word, words, n=1)
    return ConfigError(
        f"no layer of this model is meant by {word!r}",
        where=setting,
        why="there are: " + ", ".join(words) + "; experts of a mixture are not among them",
        hint=f"did you mean {near[0]}?" if near else f"--{setting} {ALL}",
    )
