"""Beginning a chain at a checkpoint that somebody vouches for, instead of at the genesis.

An invitation names a decided round. What others then send is believed only as far as that round's
digest reaches, which is all the way back:

- The header of the checkpoint's round is the one with this digest; each header before it is the one
  that the next names as its parent.
- The base is the one that the first header after it names: its members by their hash, its header
  by its digest, its beacon by the hash that the next beacon is made of. Its state root counts only
  where the first header leaves the state as it was, and then it names that root.
- Nevertheless every certificate is checked forward, with the members that follow from the base, as
  if the base had been reached header by header.

So a liar can send another base, a shorter chain or a chain of its own, and is found out by the
digest whatever it signed. A base is an epoch older than the checkpoint, or the genesis: the headers
between tell all admissions that the quotas of the next round count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from peerformer.protocol.chain import Base, Chain, Succeed, first_base, is_far_enough
from peerformer.protocol.codec import U64, Hash, MalformedError, encode
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.membership import EPOCH_ROUNDS, next_members
from peerformer.protocol.messages import Certified

HEADER_PREFIX = "header/"
BASE_KEY = "base"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A decided round, as whoever invites names it."""

    round: U64
    digest: Hash  # of its header
    members_hash: Hash  # of the members of the round after it


def newest_checkpoint(chain: Chain) -> Checkpoint:
    """Return what an invitation into this chain names: its newest decided round."""
    return Checkpoint(chain.tip, chain.head, chain.members.hash)


def base_fault(base: Base, genesis: Genesis, checkpoint: Checkpoint) -> str | None:
    """Return why no chain up to a checkpoint may begin at this base, or None."""
    if base.round == 0:
        return None if base == first_base(genesis) else "a base that is not the genesis"
    if base.round % EPOCH_ROUNDS:
        return f"a base of round {base.round}, which ends no epoch"
    if not is_far_enough(base.round, checkpoint.round):
        return f"a base of round {base.round}, too near to round {checkpoint.round}"
    return None


def chain_to(
    genesis: Genesis,
    checkpoint: Checkpoint,
    base: Base,
    items: Sequence[Certified],
    succeed: Succeed = next_members,
) -> Chain:
    """Return the chain that begins at a base and ends with the checkpoint's round.

    Args:
        genesis: what the swarm is founded on.
        checkpoint: the round that the invitation names.
        base: where the chain begins, from anybody.
        items: the certified headers after it up to the checkpoint's round, from anybody.
        succeed: see `Chain`.

    Raises:
        MalformedError: if they are not what the checkpoint vouches for.
    """
    fault = base_fault(base, genesis, checkpoint)
    if fault:
        raise MalformedError(fault)
    last = items[-1].header if items else None
    if last is None or last.round != checkpoint.round:
        raise MalformedError(f"headers that do not end with round {checkpoint.round}")
    if last.digest != checkpoint.digest:
        raise MalformedError(f"another header of round {checkpoint.round} than the checkpoint's")
    if last.next_members_hash != checkpoint.members_hash:
        raise MalformedError(f"other members after round {checkpoint.round} than the checkpoint's")
    chain = Chain(genesis, succeed, base)
    for item in items:
        fault = chain.append(item)
        if fault:
            raise MalformedError(f"round {item.header.round}: {fault}")
    return chain


# --- as records of a peer's store ----------------------------------------------------------------


def header_key(number: int) -> str:
    """Return the record key of a decided round."""
    return f"{HEADER_PREFIX}{number:012d}"


def records_of(chain: Chain) -> tuple[tuple[str, bytes], ...]:
    """Return the records from which a peer restores a chain."""
    headers = tuple((header_key(item.header.round), encode(item)) for item in chain.items)
    return ((BASE_KEY, encode(chain.base)), *headers) if chain.base.round else headers
