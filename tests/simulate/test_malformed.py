"""Contributions that break the form are refused with a reason, and the round goes on."""

import pytest
import torch

from peerformer.events import ContributionRefused, PeerEvicted
from peerformer.gradients.audit import check_bounds
from peerformer.gradients.compress import CODECS, encode, encoded_size
from peerformer.malformed import MALFORMED, SHAPES, claimed
from peerformer.simulate.plan import parse_adversaries
from peerformer.simulate.world import World

P = 10_000
BROKEN = [  # any numbers in any order are a plain contribution
    (codec, shape)
    for codec in sorted(CODECS)
    for shape in sorted(SHAPES)
    if codec != "none" or shape not in ("repeated", "unsorted")
]


@pytest.mark.parametrize(("codec", "shape"), BROKEN)
def test_no_codec_decodes_what_breaks_its_form(codec: str, shape: str) -> None:
    seed = 3
    print("seed", seed)
    update_P = torch.randn(P, generator=torch.Generator().manual_seed(seed)) * 0.01
    blob = encode(update_P, torch.zeros(P), codec=codec, feedback=1.0).blob
    assert check_bounds(blob, P, codec) is None and len(blob) == encoded_size(P, codec)
    told = claimed(shape, blob, bytes(32), 4)
    assert told.data != blob and told.size == len(told.data)
    assert check_bounds(told.data, P, codec) is not None


@pytest.mark.parametrize("attack", sorted(MALFORMED))
def test_a_peer_that_breaks_the_form_is_left_out_and_nobody_else(attack: str) -> None:
    world = World(11, 7, attacks={6: attack})
    world.start()
    assert world.run(seconds=120, until=lambda: all(world.tip(i) >= 4 for i in range(6)))
    machine = world.hosts[0].machine
    assert machine is not None
    liar = world.hosts[6].me
    items = machine.chain.items
    accepted = [{entry.peer for entry in item.header.contributions} for item in items]
    assert not any(liar in peers for peers in accepted)
    assert sum(len(peers) == 6 for peers in accepted) >= len(items) - 1  # and all others
    for host in world.hosts[:6]:
        refused = {e.peer for e in host.reports if isinstance(e, ContributionRefused)}
        evicted = {e.peer for e in host.reports if isinstance(e, PeerEvicted)}
        assert refused | evicted <= {liar.hex()}
    # It attests that it can decode its own: that is evidence. Where nobody can fetch what it names,
    # or its size is forbidden, there is none.
    is_evidence = attack in SHAPES and attack != "trailing"
    assert (liar in machine.chain.members.banned) == is_evidence


def test_the_command_knows_them_by_name() -> None:
    assert parse_adversaries("nan*2,bomb") == (("nan",), ("nan",), ("bomb",))
