"""The chain that a peer's store holds, and the fork that it saw: read back, and checked again."""

from collections.abc import Mapping

from peerformer.protocol.chain import Base, Chain, Succeed
from peerformer.protocol.checkpoint import BASE_KEY, HEADER_PREFIX, header_key
from peerformer.protocol.codec import MalformedError, decode, encode
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.messages import Certified

FORK_KEY = "fork"


def stored_chain(
    genesis: Genesis, succeed: Succeed, records: Mapping[str, bytes], state_round: int
) -> Chain:
    """Return the chain of a store; `state_round` is that of the state beside it.

    Raises:
        MalformedError: if a record is damaged, is missing or does not follow from those before.
    """
    chain = Chain(genesis, succeed, stored_base(records))
    for key in sorted(key for key in records if key.startswith(HEADER_PREFIX)):
        item = decode(Certified, records[key])
        fault = chain.append(item)
        if fault or header_key(item.header.round) != key:
            raise MalformedError(f"{key}: {fault or 'out of place'}")
    if state_round > chain.tip:
        raise MalformedError(f"a state of round {state_round}, a chain up to {chain.tip}")
    return chain


def shortened(chain: Chain) -> tuple[tuple[tuple[str, bytes], ...], list[str]]:
    """Forget old rounds of a chain; returns the records to write for it, and the keys to delete."""
    gone = [header_key(number) for number in chain.forget_old()]
    return ((BASE_KEY, encode(chain.base)),) if gone else (), gone


def stored_fork(chain: Chain, records: Mapping[str, bytes]) -> tuple[Certified, Certified] | None:
    """Return the two certificates for one round that were seen before a restart, if any.

    Raises:
        MalformedError: if the record is damaged, or proves no fork.
    """
    data = records.get(FORK_KEY)
    if data is None:
        return None
    other = decode(Certified, data)
    mine = chain.item(other.header.round)
    if mine is None or not chain.contradicts(other):
        raise MalformedError(f"{FORK_KEY}: no other certificate for a round that is here")
    return mine, other


def stored_base(records: Mapping[str, bytes]) -> Base | None:
    """Return the base that a store begins at, None for the genesis.

    Raises:
        MalformedError: if it is damaged, or is not where the stored headers begin.
    """
    data = records.get(BASE_KEY)
    base = decode(Base, data) if data is not None else None
    first = min((key for key in records if key.startswith(HEADER_PREFIX)), default=None)
    begins = header_key(base.round + 1 if base else 1)
    if first not in (None, begins):
        raise MalformedError(f"the headers begin with {first}, but the base is that of {begins}")
    return base
