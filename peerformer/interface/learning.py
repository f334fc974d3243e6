"""How the peers of `peerformer simulate --replica real` learn, as flags."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from peerformer.allowed import SETTINGS
from peerformer.errors import ConfigError
from peerformer.simulate.learning import Learning

CODECS = ", ".join(SETTINGS["swarm.codec"].choices or ())
USUAL = Learning()


@Parameter(name="*")
@dataclass(frozen=True)
class LearningOptions:
    """The flags; those of a toy world are the defaults."""

    codec: Annotated[str, Parameter(help=f"How real contributions are encoded: {CODECS}.")] = (
        USUAL.codec
    )
    rule: Annotated[
        str,
        Parameter(
            help="How they are combined: robust, cheap, mean, or parts (docs/learning.md); none: "
            "what suits the texts."
        ),
    ] = USUAL.rule
    inner_steps: Annotated[int, Parameter(help="H, local steps of a real round.")] = (
        USUAL.inner_steps
    )
    unlike: Annotated[
        bool,
        Parameter(negative=(), help="Each real peer has a text of its own, of one of three kinds."),
    ] = False
    no_filter: Annotated[
        bool, Parameter(negative=(), help="Refuse no contribution for the harm that scorers see.")
    ] = False


def learning_of(options: LearningOptions, replica: str, peers: int | None) -> Learning | None:
    """Return how real peers learn; None for toys, which do not.

    Raises:
        ConfigError: something cannot be, or toys were told how to learn.
    """
    if replica != "real":
        if options != LearningOptions():
            raise ConfigError(
                "only real peers learn: --codec, --rule, --inner-steps, --unlike and --no-filter"
                " say how",
                where="command line",
                hint="--replica real",
            )
        return None
    learning = Learning(
        options.codec, options.rule, options.inner_steps, options.unlike, not options.no_filter
    )
    learning.contributions_least(peers)
    return learning


def flags_of(learning: Learning) -> list[str]:
    """Return the flags that say how real peers learn, where it is not the usual way."""
    words = []
    for name in ("codec", "rule", "inner_steps"):
        value = getattr(learning, name)
        if value != getattr(USUAL, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words + ["--unlike"] * learning.unlike + ["--no-filter"] * (not learning.filters)
