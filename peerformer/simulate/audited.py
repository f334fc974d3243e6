"""Worlds in which trainings are repeated by auditors, some of whom lie about it.

Random number generators of their own: other worlds stay what they are.
"""

from random import Random
from typing import TYPE_CHECKING

from peerformer.simulate.toy import IDLE
from peerformer.simulate.world import World

if TYPE_CHECKING:
    from peerformer.simulate.troubles import Plan

AUDITED = 0.25  # share of the mixed toy worlds
AUDIT_PERMILLE = 400  # of the contributions there
FALSE_FINDING, WITHHOLDS = "false-finding", "withhold-record"
TOLD_ONLY_HERE = (FALSE_FINDING, WITHHOLDS)


def drawn_permille(plan: "Plan", seed: int) -> int:
    """Return how many of 1,000 contributions are repeated in a world where nobody trains ahead."""
    if plan.audit_permille is not None:
        return plan.audit_permille
    may = plan.kind == "mixed" and plan.replica == "toy"
    return AUDIT_PERMILLE if may and Random(f"audits {seed}").random() < AUDITED else 0


def misreport(world: World) -> None:
    """Where there are audits, let one of the liars be a false auditor, and perhaps one be lazy."""
    random = Random(f"findings {world.seed}")
    liars = [host for host in world.hosts if host.attacks]
    if world.limits.audit_permille and liars:
        if len(liars) > 1 and random.random() < 0.5:
            lazy = liars.pop(random.randrange(len(liars)))
            lazy.attacks = (random.choice((*IDLE, WITHHOLDS)),)
            world.plot.keys.pop(lazy.me, None)  # nobody else votes with its key, or helps it
            world.plot.friends.discard(lazy.me)
        random.choice(liars).attacks += (FALSE_FINDING,)
