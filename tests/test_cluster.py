"""Clusters: do README.md's recipes for many processes work, with the real engines?"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import environment, load_set, names, snapshot
from readme import block_with, project_copy, run_block

STEMS = [f"batch_{i:04d}" for i in range(4)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a copy of the project with four batches of seven traces in traces_data/."""
    return project_copy(tmp_path / "project", len(STEMS), 7)


def assert_all_split(project: Path) -> None:
    output = project / "traces_data_split"
    assert names(output) == [f"{stem}_sub0000.pkl.gz" for stem in STEMS]
    for number, stem in enumerate(STEMS):
        (traces,) = load_set(output, stem)
        assert [trace["question_id"] for trace in traces] == [f"{number}:{i}" for i in range(7)]


def run_tasks(project: Path) -> None:
    """Run the script once a task, as Slurm does: its number is in the environment."""
    for task in range(len(STEMS)):
        env = environment(SLURM_ARRAY_TASK_ID=str(task), SLURM_CPUS_PER_TASK="2")
        done = run_block(block_with("", "slurm"), project, env)
        assert done.returncode == 0, done.stderr
    assert_all_split(project)


def test_slurm_array_is_safe_to_requeue(project: Path) -> None:
    run_tasks(project)
    before = snapshot(project / "traces_data_split")
    run_tasks(project)
    assert snapshot(project / "traces_data_split") == before


def test_slurm_task_that_was_killed_is_done_again(project: Path) -> None:
    output = project / "traces_data_split"
    output.mkdir()
    (output / f"{STEMS[0]}_sub0000.pkl.gz.part").write_bytes(b"half")
    (output / f"{STEMS[0]}.lock.part").touch()
    run_tasks(project)


def test_slurm_task_without_a_file_fails(project: Path) -> None:
    env = environment(SLURM_ARRAY_TASK_ID=str(len(STEMS)))
    done = run_block(block_with("", "slurm"), project, env)
    assert done.returncode != 0
    assert names(project / "traces_data_split") == []


def find_parallel() -> bool:
    """Return whether GNU parallel is installed; moreutils has another program of that name."""
    if shutil.which("parallel") is None:
        return False
    version = ["parallel", "--will-cite", "--version"]
    done = subprocess.run(version, capture_output=True, text=True, check=False)
    return done.stdout.startswith("GNU parallel")


needs_parallel = pytest.mark.skipif(not find_parallel(), reason="GNU parallel is not installed")


@needs_parallel
def test_gnu_parallel_on_this_machine(project: Path) -> None:
    script = block_with("parallel --jobs", "bash")
    for _ in range(2):
        done = run_block(script, project, environment(HOME=str(project)))
        assert done.returncode == 0, done.stderr
        assert_all_split(project)
    assert len((project / "trabajos.log").read_text().splitlines()) == 1 + len(STEMS)


@needs_parallel
def test_gnu_parallel_on_many_hosts(project: Path) -> None:
    """Everything but the network is real: this ssh runs the command on this machine."""
    ssh = project / "ssh"
    # Called as: ssh [options] HOST -- COMMAND...; sshd sets SHELL for what it runs.
    ssh.write_text(
        '#!/bin/sh\nwhile [ "${1#nodo}" = "$1" ]; do shift; done\n'
        f'echo "$1" >> "{project}/hosts"\nshift 2\n'
        'SHELL=/bin/sh exec sh -c "$*"\n'
    )
    ssh.chmod(0o755)
    script = block_with("--sshlogin", "bash")
    env = environment(HOME=str(project), PARALLEL_SSH=str(ssh))
    done = run_block(script, project, env)
    assert done.returncode == 0, done.stderr
    assert_all_split(project)
    hosts = (project / "hosts").read_text()
    assert "nodo1" in hosts and "nodo2" in hosts


def test_dask_maps_split_file(project: Path) -> None:
    pytest.importorskip("distributed")
    script = block_with("LocalCluster", "python")
    (project / "dask_example.py").write_text(script, encoding="utf-8")
    silent = {"PYTHONDEVMODE": "", "PYTHONWARNDEFAULTENCODING": ""}  # of Dask there are warnings
    env = environment(PYTHONPATH=str(project), PYTHONUTF8="1", **silent)
    for word in ("dividido", "omitido"):
        done = run_block(".venv/bin/python dask_example.py", project, env)
        assert done.returncode == 0, done.stderr
        assert [line.split()[-1] for line in done.stdout.splitlines()] == [word] * len(STEMS)
        assert_all_split(project)
    assert os.listdir(project / "traces_data")
