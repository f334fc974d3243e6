"""What came of a real world: how good the model was after each round, and what that took."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peerformer.simulate.world import World


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned in a world, and whose contributions it was learned from.

    Attributes:
        bits_per_byte: of the agreed model on held-out text, after each round; None where nobody
            held that round's state.
        bytes_sent_a_peer: messages and contributions, on average over the peers.
        honest_refused: how often a contribution of an honest peer was refused.
        liars_counted: how often one of a liar was not.
        by_kind: bits per byte of the newest state on each kind of text, where they are unlike.
        backdoor_answered: the share of held-out sequences to which, ended by the trigger of the
            `backdoor` attack, the newest state gives the liars' answer.
    """

    bits_per_byte: tuple[float | None, ...] = ()
    bytes_sent_a_peer: float = 0.0
    honest_refused: int = 0
    liars_counted: int = 0
    by_kind: tuple[tuple[str, float], ...] = ()
    backdoor_answered: float = 0.0


def learned(world: "World") -> Learned | None:
    """Look at a world that has come to its end; None if nothing was measured in it."""
    bits = world.replicas.bits_per_byte
    if not bits:
        return None
    sent = world.sent_bytes + world.blobs_copied * world.genesis.blob_size_max
    machines = [host.machine for host in world.honest() if host.machine is not None]
    chain = max((machine.chain for machine in machines), key=lambda chain: chain.tip)
    headers = [item.header for item in chain.items]
    liars = {host.me for host in world.hosts if host.attacks}
    return Learned(
        tuple(bits.get(number) for number in range(1, max(bits) + 1)),
        sent / len(world.hosts),
        sum(entry.peer not in liars for header in headers for entry in header.refused),
        sum(entry.peer in liars for header in headers for entry in header.contributions),
        tuple(sorted(world.replicas.by_kind.items())),
        world.replicas.backdoor_answered,
    )
