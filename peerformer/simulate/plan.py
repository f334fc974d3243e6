"""What kinds of trouble a world has, who lies in it, and what is learned: as it is asked for."""

from dataclasses import dataclass

from peerformer.adversary import POISONS
from peerformer.byzantine import ATTACKS
from peerformer.errors import ConfigError
from peerformer.malformed import MALFORMED
from peerformer.simulate.learning import Learning

TROUBLE_SECONDS = 45.0
LIARS_TOLD = (*ATTACKS, "poison")
KNOWN = {*LIARS_TOLD, *POISONS, *MALFORMED}
SHORT = {"ipm": "ipm-0.5"}  # of the strengths in the literature the one that hides best
WORLDS = {
    "mixed": "everything at once (the default of toys)",
    "calm": "nothing but delay: what a good day costs (the default of real peers)",
    "crashes": "crashes, full and torn disks, sleep; honest peers only",
    "partitions": "loss, repeats and partitions; honest peers only",
    "liars": "up to f liars on a good network",
    "churn": "joins and leaves among crashes and partitions",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What kinds of trouble a world has."""

    kind: str = "mixed"
    adversaries: tuple[tuple[str, ...], ...] | None = None  # None: drawn from the seed
    peers: int | None = None  # None: drawn from the seed
    trouble_seconds: float = TROUBLE_SECONDS
    rounds: int | None = None  # the trouble ends with this round instead
    replica: str = "toy"
    staleness: int | None = None  # None: drawn from the seed
    audit_permille: int | None = None  # None: drawn from the seed; none in a real one
    learning: Learning | None = None  # of real replicas; None: the smallest model, on stories

    @property
    def is_cell(self) -> bool:
        """Whether nothing is looked at but what is learned in so many rounds."""
        return self.kind == "calm" and self.learning is not None and self.rounds is not None

    def has(self, *kinds: str) -> bool:
        """Whether the world has trouble that belongs to one of these kinds."""
        return self.kind == "mixed" or self.kind in kinds


def parse_adversaries(text: str) -> tuple[tuple[str, ...], ...]:
    """Read `equivocate*2,silent+amnesia`: two of one kind, one that does both.

    Raises:
        ConfigError: if an attack is unknown or a count is none.
    """
    liars: list[tuple[str, ...]] = []
    for part in filter(None, text.split(",")):
        names, _, number = part.strip().partition("*")
        attacks = tuple(SHORT.get(name, name) for name in names.split("+"))
        unknown = [name for name in attacks if name not in KNOWN]
        if unknown or not (number or "1").isdigit():
            raise ConfigError(
                f"--adversaries cannot read {part!r}",
                why=f"known: {', '.join(sorted({*KNOWN, *SHORT}))}",
                hint='--adversaries "equivocate*1,silent*1"',
            )
        liars += [attacks] * int(number or 1)
    return tuple(liars)
