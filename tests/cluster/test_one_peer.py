"""Ranks as one peer: the swarm sees what it would see of one process with the same batch."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from peerformer.cluster.group import Group
from peerformer.cluster.launch import Launch
from peerformer.cluster.one_peer import OnePeer
from peerformer.errors import ConfigError
from peerformer.settings import resolve
from tests.cluster.processes import SMALL, Ranks, Server

NODE = [
    *("node", "--no-console", "--port", "0", "--run", "peer", *SMALL),
    *("--swarm.inner_steps", "4", "--swarm.contributions_min", "1"),
]


def first_round(server: Server, folder: Path, size: int) -> tuple[dict[str, float], Ranks]:
    """Let a swarm of one peer train a round, and stop it as Ctrl-C would."""
    ranks = server.start(folder, *NODE, size=size)
    journal = folder / "runs" / "peer" / "peers" / "me" / "journal.jsonl"
    ranks.await_text(journal, '"step":1,')
    for pid in ranks.pids:
        os.kill(pid, signal.SIGINT)
    assert ranks.wait() == [0] * size, [ranks.err(rank) for rank in range(size)]
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    trained = next(it for it in events if it["event"] == "trained" and it["round"] == 1)
    agreed = next(it for it in events if it["event"] == "validated" and it["step"] == 1)
    return {
        "tokens": trained["tokens"],
        "trained": trained["loss"],
        "agreed": agreed["loss"],
    }, ranks


@pytest.mark.deep  # two swarms, one after the other: a minute or two
def test_two_ranks_contribute_what_one_process_does(server, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, _ = first_round(server, tmp_path / "one", 1)
    # The same genesis and the same key, and so the same data; nothing of what happened.
    swarm = tmp_path / "one" / "runs" / "peer"
    happened = ("states", "blobs", "evidence", "protocol*", "journal*", "epoch", "local*")
    left_out = shutil.ignore_patterns(*happened)
    shutil.copytree(swarm, tmp_path / "two" / "runs" / "peer", ignore=left_out)
    two, ranks = first_round(server, tmp_path / "two", 2)
    assert two["tokens"] == one["tokens"]
    assert abs(two["trained"] - one["trained"]) < 1e-4
    assert abs(two["agreed"] - one["agreed"]) < 1e-4  # after the contribution, as all apply it
    assert "2 ranks on one host" in ranks.err(0) and "as one peer" in ranks.err(0)
    assert ranks.err(1) == ranks.out(1) == ""


def test_a_batch_of_the_genesis_that_ranks_do_not_divide_is_refused():
    group = object.__new__(Group)
    group.launch, group.config = Launch("torchrun", 0, 3, 0, 3, "a"), resolve().config
    with pytest.raises(ConfigError, match="batches of 8 sequences cannot be divided among 3"):
        OnePeer(group).attach_to(None, resolve().config)  # type: ignore[arg-type]
