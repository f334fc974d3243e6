"""Who a process is, by the variables of each launcher, as they were seen from the real ones."""

import pytest

from peerformer.cluster.launch import MPICH, OPEN_MPI, SLURM, TORCHRUN, detect, first_node
from peerformer.errors import ConfigError

TORCH = {
    **{"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
    **{"MASTER_ADDR": "node0", "MASTER_PORT": "29500", "TORCHELASTIC_RESTART_COUNT": "2"},
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
OPEN = {
    **{"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"},
    **{"OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
    "PMIX_NAMESPACE": "prterun-a-1@1",
}
SLURM_STEP = {
    **{"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"},
    **{"SLURM_STEP_NUM_TASKS": "6", "SLURM_NODEID": "2", "SLURM_NTASKS": "6"},
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_STEP_NODELIST": "gpu[03-04,07]",
}


def test_torchrun_tells_everything():
    it = detect(TORCH, "node1")
    assert (it.launcher, it.rank, it.size, it.local_rank, it.local_size) == (TORCHRUN, 5, 8, 1, 4)
    assert (it.address, it.port, it.attempt, it.has_store) == ("node0", 29500, 2, True)
    assert not it.is_alone and not it.is_one_host


def test_open_mpi_on_one_host_meets_on_the_loopback_at_a_port_of_the_job():
    it = detect(OPEN, "a")
    assert (it.launcher, it.rank, it.size, it.local_rank) == (OPEN_MPI, 3, 4, 3)
    assert it.address == "127.0.0.1" and it.is_one_host
    other = detect({**OPEN, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, "a")
    assert it.port == other.port != detect({**OPEN, "PMIX_NAMESPACE": "prterun-a-2@1"}, "a").port


def test_rank_and_local_rank_differ_across_hosts_and_the_address_is_not_guessed():
    it = detect({**OPEN, "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, "b")
    assert (it.rank, it.local_rank, it.local_size, it.address) == (3, 1, 2, None)
    assert detect({**OPEN, "MASTER_ADDR": "a", "MASTER_PORT": "7000"}, "b").port == 7000


def test_mpich_and_intel_name_their_job_by_the_process_that_started_them():
    variables = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    it = detect(variables, "a", parent=41)
    assert (it.launcher, it.rank, it.size, it.local_rank) == (MPICH, 1, 2, 1)
    assert it.port == detect({**variables, "PMI_RANK": "0"}, "a", parent=41).port
    assert it.port != detect(variables, "a", parent=42).port
    by_srun = {"PMI_RANK": "3", "PMI_SIZE": "4", "SLURM_LOCALID": "1", "MPI_LOCALNRANKS": "2"}
    assert detect(by_srun, "a").local_rank == 1


def test_slurm_names_the_first_node_and_counts_the_tasks_of_this_one():
    it = detect(SLURM_STEP, "gpu07")
    assert (it.launcher, it.rank, it.size, it.local_rank, it.local_size) == (SLURM, 5, 6, 1, 2)
    assert it.address == "gpu03"
    assert it.port == detect({**SLURM_STEP, "SLURM_PROCID": "0"}, "gpu03").port
    assert [first_node(text) for text in ("a", "a,b", "n[1-3]", "n[07,9]-ib,x")] == [
        *("a", "a", "n1", "n07-ib")
    ]


def test_a_batch_script_without_srun_is_one_process_and_says_so():
    batch = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "6"}
    it = detect(batch, "gpu03")
    assert it.is_alone and "srun" in it.in_words()
    assert "one process" in detect({}, "a").in_words()


def test_torchrun_inside_slurm_or_mpi_is_torchrun():
    assert detect({**SLURM_STEP, **OPEN, **TORCH}, "a").launcher == TORCHRUN
    assert detect({**SLURM_STEP, **OPEN}, "a").launcher == OPEN_MPI


@pytest.mark.parametrize(
    "broken",
    [
        {**TORCH, "RANK": "8"},
        {**TORCH, "RANK": "one"},
        {**TORCH, "LOCAL_RANK": "4"},
        {**TORCH, "MASTER_PORT": "70000"},
        {**OPEN, "OMPI_COMM_WORLD_SIZE": ""},
        {**SLURM_STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x"},
        {**SLURM_STEP, "SLURM_NODEID": "3"},
    ],
)
def test_variables_that_contradict_each_other_are_refused(broken):
    with pytest.raises(ConfigError, match="launcher's variables"):
        detect(broken, "a")
