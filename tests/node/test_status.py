"""What a peer says that it is doing is what keeps it from going on."""

import pytest

from peerformer.node.status import phase_of
from peerformer.protocol.checkpoint import records_of
from peerformer.protocol.machine import Machine
from tests.protocol.test_chain import GENESIS, LINKS, NEWCOMER, PEERS
from tests.protocol.test_checkpoint import SEED_OF, grown


def restarted(peer: bytes, *, behind: int) -> Machine:
    chain = grown()
    return Machine(
        GENESIS,
        SEED_OF[peer],
        hash_chain=LINKS[peer],
        records=dict(records_of(chain)),
        state_round=chain.tip - behind,
        now=0.0,
    )


def test_a_voter_that_is_alone_waits_for_a_quorum_whether_it_has_the_state_or_not() -> None:
    """Killed between a round's decision and its state: nobody is there to give it the state."""
    for behind in (0, 1):
        assert phase_of(restarted(PEERS[0], behind=behind)) == "waiting for a quorum"


@pytest.mark.parametrize("behind", [1, 6])
def test_whoever_has_somebody_to_ask_computes_a_few_rounds_or_fetches_the_state(
    behind: int,
) -> None:
    machine = restarted(PEERS[0], behind=behind)
    machine.neighbourhood.greeted.add(PEERS[1])
    assert phase_of(machine) == ("computing the state" if behind == 1 else "fetching state")


def test_a_newcomer_fetches_the_state_before_it_is_anybody() -> None:
    stranger = Machine(
        GENESIS, SEED_OF[NEWCOMER], hash_chain=LINKS[NEWCOMER], records={}, state_round=-1, now=0.0
    )
    assert phase_of(stranger) == "fetching state"
