"""One cell of the grid of attacks, rules and codecs: a real world where nothing else goes wrong."""

from dataclasses import dataclass

from peerformer.simulate.learned import Learned
from peerformer.simulate.learning import Learning
from peerformer.simulate.plan import Plan, parse_adversaries
from peerformer.simulate.troubles import Troubled

NO_ATTACK = "none"


@dataclass(frozen=True, slots=True)
class Cell:
    """What is told, and what stands against it.

    Attributes:
        attack: what each liar does, several things joined by `+`; `NO_ATTACK`, then nobody lies.
        rule: how contributions are combined.
        codec: how they are encoded.
        filters: what scorers see do harm is refused.
        peers: all of them.
        liars: of the peers.
        seed: of the model, the text's order, and who lies.
    """

    attack: str
    rule: str
    codec: str
    filters: bool
    peers: int
    liars: int
    seed: int

    def plan(self, rounds: int, inner_steps: int) -> Plan:
        """Return the world's plan: what `peerformer simulate` makes of its flags."""
        lies = "" if self.attack == NO_ATTACK else f"{self.attack}*{self.liars}"
        return Plan(
            "calm",
            parse_adversaries(lies),
            self.peers,
            rounds=rounds,
            replica="real",
            staleness=0,
            learning=Learning(self.codec, self.rule, inner_steps, filters=self.filters),
        )


def run_cell(cell: Cell, rounds: int, inner_steps: int) -> tuple[Learned, str]:
    """Run a cell; returns what came of it and the invariant that broke, or nothing."""
    outcome = Troubled(cell.seed, cell.plan(rounds, inner_steps)).run()
    broken = outcome.violation.invariant if outcome.violation is not None else ""
    return outcome.learned or Learned(), broken
