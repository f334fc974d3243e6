"""Ranks that cannot train together: one error that names rank, host and field, and all end."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from peerformer.cluster.group import refuse_indivisible, refuse_shared_gpus
from peerformer.cluster.launch import Launch
from peerformer.errors import ConfigError
from peerformer.settings import resolve
from tests.cluster.processes import SMALL, environment, free_port, mpi_launcher

TRAIN = ["train", *SMALL, "--steps", "4", "--batch-size", "6"]
HOST = socket.gethostname()


def errors(ranks):
    return [ranks.err(rank) for rank in range(len(ranks.pids))]


@pytest.mark.parametrize(
    ("own", "field"),
    [
        ({"rank1": ["--training.seed", "5"]}, "training.seed"),
        ({"variables2": ["WORLD_SIZE=4"]}, "world size"),
        ({"rank2": ["--data.max_bytes", "20000"]}, "data digest"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ranks_that_disagree_end_with_one_error_that_names_rank_host_and_field(
    server, tmp_path, own, field
):
    began = time.monotonic()
    size = 3
    ranks = server.start(tmp_path, *TRAIN, size=size, **own)
    assert ranks.wait() == [2] * size, errors(ranks)
    told = "".join(errors(ranks))
    assert told.count("error:") == 1 and field in told, told
    culprit = 1 if "rank1" in own else 2
    assert f"rank {culprit} on {HOST}" in told and f"rank 0 on {HOST}" in told
    assert time.monotonic() - began < 60


def test_two_processes_of_one_rank_and_a_batch_that_does_not_divide(server, tmp_path):
    twice = server.start(tmp_path, *TRAIN, size=3, variables2=["RANK=1", "LOCAL_RANK=1"])
    # Rank 2 never comes: whoever is rank 1 a second time says so, and rank 0 need not wait.
    codes = twice.wait()
    assert sorted(codes) == [2, 2, 2], errors(twice)
    assert "two processes say that they are rank 1" in "".join(errors(twice))
    odd = server.start(tmp_path, "train", *SMALL, size=3)
    assert odd.wait() == [2, 2, 2]
    assert "cannot be divided among 3 ranks" in odd.err(0) and "batch_size=9" in odd.err(0)
    assert odd.err(1) == odd.err(2) == ""


def test_a_port_in_use_is_one_clear_error_on_rank_0(server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ranks = server.start(tmp_path, *TRAIN, size=1, variables0=[f"MASTER_PORT={port}"])
        assert ranks.wait() == [0]  # one process needs no port
        own = {"variables0": [f"MASTER_PORT={port}"]}
        ranks = server.start(tmp_path, *TRAIN, size=2, **own, rank1=["--help"])
        assert ranks.wait() == [2, 0]
    assert f"cannot listen on port {port}: it is in use" in ranks.err(0)


def test_an_mpi_engine_without_an_mpi_and_nccl_without_a_gpu_are_refused(server, tmp_path):
    for words, told in (
        (("--training.engine", "mpi"), "no MPI has started these ranks"),
        (("--training.backend", "nccl"), "not every rank has a GPU"),
    ):
        ranks = server.start(tmp_path, *TRAIN, *words)
        assert ranks.wait() == [2, 2], errors(ranks)
        assert told in ranks.err(0) and ranks.err(1) == ""


def test_a_gpu_asked_twice_names_both_ranks():
    held = [{"~rank": n, "~host": "a", "~gpu": gpu} for n, gpu in enumerate(("x", "y", "x"))]
    with pytest.raises(ConfigError, match="rank 0 and rank 2 ask for the same GPU") as error:
        refuse_shared_gpus(held)
    assert "GPU x of a" in str(error.value)
    refuse_shared_gpus([{**rank, "~host": str(n)} for n, rank in enumerate(held)])
    refuse_shared_gpus([{**rank, "~gpu": ""} for rank in held])


def test_accumulation_is_divided_before_ranks_are():
    config = resolve(overrides={"training.batch_size": 16, "training.accumulation": 4}).config
    refuse_indivisible(config, Launch("torchrun", 0, 4, 0, 4, "a"))
    with pytest.raises(ConfigError, match="in 4 passes"):
        refuse_indivisible(config, Launch("torchrun", 0, 8, 0, 8, "a"))


def test_engine_and_backend_that_exclude_each_other_are_refused():
    with pytest.raises(ConfigError, match="over MPI and not over gloo"):
        resolve(overrides={"training.engine": "mpi", "training.backend": "gloo"})
    for other in ({"lora.rank": 4, "training.base": "x"}, {"training.quantise": "int8"}):
        with pytest.raises(ConfigError, match="does not divide"):
            resolve(overrides={"training.engine": "fsdp", **other})


def test_a_rank_that_hangs_is_named_within_the_stated_time_and_all_end(server, tmp_path):
    words = ["train", *SMALL, "--steps", "100000", "--run", "hung", "--training.hang_seconds", "3"]
    ranks = server.start(tmp_path, *words)
    ranks.await_text(tmp_path / "runs" / "hung" / "metrics.csv", "\n5,")
    os.kill(ranks.pids[1], signal.SIGSTOP)
    began = time.monotonic()
    while not ranks.err(0).count("error:"):
        assert time.monotonic() - began < 30, ranks.err(0)
        time.sleep(0.1)
    assert f"rank 1 on {HOST} does not go on" in ranks.err(0)
    # Starved of a core it may have stood still before it was stopped: then others wait for it.
    assert re.search("it has not answered for|have been waiting for it for", ranks.err(0))
    os.kill(ranks.pids[1], signal.SIGCONT)  # it finds out by itself, and ends
    assert ranks.wait() == [1, 1]
    assert (ranks.err(0) + ranks.err(1)).count("error:") == 1


def test_a_killed_rank_is_named_where_no_launcher_ends_the_others(server, tmp_path):
    words = [*TRAIN, "--run", "lost"]
    words[words.index("4")] = "100000"
    ranks = server.start(tmp_path, *words, size=3)
    ranks.await_text(tmp_path / "runs" / "lost" / "metrics.csv", "\n5,")
    os.kill(ranks.pids[2], signal.SIGKILL)
    assert ranks.wait() == [1, 1, -signal.SIGKILL]
    told = "".join(errors(ranks))
    assert told.count("error:") == 1 and f"rank 2 on {HOST} does not go on" in told, told


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["mpich", "openmpi"])
def test_an_unknown_host_in_a_hostfile_ends_everything(tmp_path, kind):
    launcher = mpi_launcher(kind)
    if launcher is None:
        pytest.skip(f"there is no {kind} here")
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("no-such-host.invalid\n")
    words = [*launcher, "-np", "2", "-hostfile", str(hosts), sys.executable, "-m", "peerformer"]
    done = subprocess.run(
        [*words, *TRAIN], cwd=tmp_path, env=environment(), capture_output=True, timeout=100
    )
    assert done.returncode != 0
    assert b"no-such-host" in done.stdout + done.stderr
    assert free_port()
