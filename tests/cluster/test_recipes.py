"""What users submit: the scripts parse, the manifests are valid as far as a schema is at hand."""

import ast
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from peerformer.cluster.launch import MPICH, OPEN_MPI, detect
from tests.cluster.processes import ROOT, environment

DEPLOY, EXAMPLE = ROOT / "deploy", ROOT / "examples" / "distributed_training.py"


def manifests() -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / "train.yaml").read_text()))


def test_the_batch_script_parses_and_starts_ranks_by_srun(tmp_path: Path):
    script = DEPLOY / "slurm" / "train.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    # An srun that shows what it would start: the words after the script's name arrive whole.
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    srun.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": "/tmp"}
    words = ["bash", script, "--data", "my text.jsonl"]
    said = subprocess.run(words, env=path, capture_output=True, text=True, check=True).stdout
    given = said.rstrip("|").split("|")
    assert given == [
        *("--kill-on-bad-exit=1", "peerformer", "train", "--run", "slurm-7"),
        *("--data", "my text.jsonl"),
    ]
    outside = subprocess.run(words, env={"PATH": path["PATH"]}, capture_output=True, text=True)
    assert outside.returncode != 0 and "start it with sbatch" in outside.stderr


def test_the_manifest_is_valid_but_for_the_frame_that_no_schema_here_knows():
    claim, jobset = manifests()
    kubernetes_validate.validate(claim, "1.37", strict=True)
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and jobset["kind"] == "JobSet"
    assert set(jobset["spec"]) == {"failurePolicy", "network", "replicatedJobs"}
    (ranks,) = jobset["spec"]["replicatedJobs"]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "inside"},
        "spec": ranks["template"]["spec"],
    }
    kubernetes_validate.validate(job, "1.37", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {**job, "spec": {**job["spec"], "pods": 2}}, "1.37", strict=True
        )


def test_the_manifests_ranks_fit_together():
    claim, jobset = manifests()
    (ranks,) = jobset["spec"]["replicatedJobs"]
    job = ranks["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    words = container["args"]
    assert f"--nnodes={job['parallelism']}" in words and job["completions"] == job["parallelism"]
    # JobSet names pods <set>-<job>-<replica>-<pod>, under the set's own name.
    name = jobset["metadata"]["name"]
    assert f"--master-addr={name}-{ranks['name']}-0-0.{name}" in words
    port = container["ports"][0]["containerPort"]
    assert f"--master-port={port}" in words
    claimed = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claimed == claim["metadata"]["name"]
    mounts = [mount["name"] for mount in container["volumeMounts"]]
    assert mounts == [volume["name"] for volume in pod["volumes"]]


def test_the_hostfile_names_hosts_and_slots():
    lines = (DEPLOY / "mpi" / "hosts.txt").read_text().splitlines()
    hosts = [line.split() for line in lines if not line.startswith("#")]
    assert hosts == [["node1", "slots=4"], ["node2", "slots=4"]]
    assert {OPEN_MPI, MPICH} == {"Open MPI", "MPICH or Intel MPI"}
    assert detect({}, "node1").is_alone


def test_the_example_trains_under_torchrun_and_fits_a_page(launched, tmp_path: Path):
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) <= 60 and ast.get_docstring(ast.parse(source))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = launched(*command, str(EXAMPLE), "--steps", "3", folder=tmp_path)
    told, _ = process.communicate(timeout=110)
    assert process.returncode == 0, told
    assert told.count("3 steps, ") == 1
    refused = subprocess.run(
        [sys.executable, str(EXAMPLE), "--data", "nowhere.txt"],
        cwd=tmp_path / "runs",
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert refused.returncode != 0 and refused.stderr.count("error:") == 1
