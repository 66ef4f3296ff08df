"""Memory: how much does a run need, what does it say before, and what if there is too little?"""

from __future__ import annotations

import gc
import io
import os
import pickle
import random
import resource
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import pytest
from bad_files import GOOD_NAMES, GOOD_TRACES, errors_of
from graphs import Plain
from helpers import (
    ROOT,
    assert_fails,
    environment,
    limit,
    names,
    peak_mib,
    pickled_call,
    pickled_list,
    run,
    split,
    write_batch,
    write_module,
)

from divide_conquer import _cgroup_memory_bytes, _dump_traces, verify_file

GRAPHS = environment(PYTHONPATH=str(ROOT / "tests"))

# What a run needs


def test_memory_stays_small_where_the_batch_is_large(tmp_path: Path) -> None:
    rng = random.Random(0)
    block = rng.randbytes(1 << 20)
    traces = [{"n": i, "states": [block[j:] + block[:j] for j in range(16)]} for i in range(6)]
    source = write_batch(tmp_path / "a.pkl", traces)
    options = ["-i", source, "-n", 3, "-j", 2]
    default = split(*options, "-o", tmp_path / "default")
    low = split(*options, "-o", tmp_path / "low", "--low-memory")
    assert peak_mib(default.stdout) > 110
    assert peak_mib(low.stdout) < 64


RUN_MAIN = """
import pathlib, sys, divide_conquer
assert divide_conquer.main(sys.argv[1:]) == 0
status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
print("resident", status.split("VmRSS:")[1].split()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_goes_back_after_each_file(tmp_path: Path) -> None:
    """Else the next file is said not to fit, and who calls main keeps a whole batch."""
    write_batch(tmp_path / "in" / "a.pkl", [os.urandom(1 << 20) + bytes(i) for i in range(120)])
    args = ("-i", tmp_path / "in", "-o", tmp_path / "out", "--no-compress", "-n", 30)
    line = [sys.executable, "-c", RUN_MAIN, *map(str, args)]
    done = run(line, env=environment(PYTHONPATH=str(ROOT)))
    assert peak_mib(done.stdout) > 120
    assert int(done.stdout.split()[-1]) < 80 << 10


def test_verifying_leaves_no_cycles_to_be_collected(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "a.pkl", [Plain() for _ in range(3)])
    traces = pickle.loads(source.read_bytes())
    for trace in traces:
        trace.me = trace
    write_batch(source, traces)
    del trace, traces
    gc.collect()
    assert split("-i", source, "-o", tmp_path / "out", env=GRAPHS).returncode == 0
    gc.disable()
    try:
        verify_file(source, tmp_path / "out")
        assert not [each for each in gc.get_objects() if isinstance(each, Plain)]
    finally:
        gc.enable()


def test_index_takes_a_few_bytes_for_each_id_and_fetch(tmp_path: Path) -> None:
    peaks = []
    for n_words in (1_000, 300_000):
        words = [[f"{i + j}" for j in range(100)] * 2 for i in range(0, n_words, 100)]
        source = write_batch(tmp_path / f"{n_words}.pkl", words)
        done = split(
            "-i", source, "-o", tmp_path / "out", "-n", 50, "--low-memory", "--no-validate"
        )
        peaks.append(peak_mib(done.stdout))
    assert (peaks[1] - peaks[0]) * 2**20 < 300_000 * (40 + 16) + (10 << 20)


MIB = 1 << 20


class TypedStorage:
    """Pickled as torch does it: by a call with a fresh copy of its bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def __reduce__(self) -> Any:
        return TypedStorage, (bytes(self.data),)


class OddStorage:
    def __reduce__(self) -> Any:
        return OddStorage, ()


@pytest.fixture
def torch_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring a stand-in for torch.storage, which is no dependency of the tests."""
    module = types.ModuleType("torch.storage")
    module.TypedStorage = TypedStorage  # type: ignore[attr-defined]
    module.UntypedStorage = OddStorage  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.storage", module)


def test_dump_keeps_no_copy_of_each_storage(torch_storage: None, tmp_path: Path) -> None:
    traces = [TypedStorage(bytes(4 * MIB)) for _ in range(8)]
    with (tmp_path / "a.pkl").open("wb") as sink:
        tracemalloc.start()
        _dump_traces(traces, sink, Path("a.pkl"))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (tmp_path / "a.pkl").stat().st_size > 32 * MIB
    assert peak < 10 * MIB  # one copy, and the next


@pytest.mark.parametrize("n_bytes", [0, 5, 300, 70_000])
def test_storages_are_written_as_pickle_writes_them(torch_storage: None, n_bytes: int) -> None:
    one = TypedStorage(b"x" * n_bytes)
    traces = [one, {"again": one, "odd": OddStorage()}, TypedStorage(b"y" * n_bytes), b"z"]
    sink = io.BytesIO()
    _dump_traces(traces, sink, Path("a.pkl"))
    assert sink.getvalue() == pickle.dumps(traces, pickle.HIGHEST_PROTOCOL)


# What is said before a load


def write_group(folder: Path, names: tuple[str, str, str], limit: object, used: int) -> None:
    """Write the files of a control group with 10 MiB of page cache in use."""
    folder.mkdir(parents=True, exist_ok=True)
    limit_name, used_name, prefix = names
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / used_name).write_text(f"{used}\n")
    stat = f"anon 5\n{prefix}inactive_file {6 * MIB}\n{prefix}active_file {4 * MIB}\nshmem 7\n"
    (folder / "memory.stat").write_text(stat)


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
V2 = ("memory.max", "memory.current", "")
LAYOUTS = [
    pytest.param("0::/slurm/job_1/step_0\n", "", V2, id="v2"),
    pytest.param("12:pids:/x\n5:memory:/slurm/job_1/step_0\n0::/x\n", "memory", V1, id="v1"),
    pytest.param("4:cpu,memory:/slurm/job_1/step_0\n", "memory", V1, id="v1-with-others"),
]


@pytest.mark.parametrize(("membership", "controller", "names"), LAYOUTS)
def test_the_tightest_group_counts_and_cache_gives_way(
    tmp_path: Path, membership: str, controller: str, names: tuple[str, str, str]
) -> None:
    (tmp_path / "cgroup").write_text(membership)
    job = tmp_path / "fs" / controller / "slurm" / "job_1"
    write_group(job / "step_0", names, "max" if names is V2 else 2**63 - 4096, 50 * MIB)
    write_group(job, names, 200 * MIB, 60 * MIB)
    write_group(job.parent, names, 900 * MIB, 500 * MIB)
    assert _cgroup_memory_bytes(tmp_path / "cgroup", tmp_path / "fs") == 150 * MIB


def test_a_container_sees_its_own_group_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/\n")
    write_group(tmp_path / "fs", V2, 100 * MIB, 300 * MIB)
    assert _cgroup_memory_bytes(tmp_path / "cgroup", tmp_path / "fs") == 0
    (tmp_path / "cgroup").write_text("5:memory:/docker/8f2\n")  # named as outside
    write_group(tmp_path / "fs" / "memory", V1, 100 * MIB, 20 * MIB)
    assert _cgroup_memory_bytes(tmp_path / "cgroup", tmp_path / "fs") == 90 * MIB


@pytest.mark.parametrize("text", ["", "0::/none\n", "odd\n", "5:memory:/none\n"])
def test_no_group_no_figure(tmp_path: Path, text: str) -> None:
    (tmp_path / "cgroup").write_text(text)
    assert _cgroup_memory_bytes(tmp_path / "cgroup", tmp_path / "fs") is None
    assert _cgroup_memory_bytes(tmp_path / "nowhere", tmp_path / "fs") is None


# Too little memory


def test_batch_larger_than_the_memory(tmp_path: Path) -> None:
    size = 600 << 20
    write_batch(tmp_path / "in" / "good.pkl.gz", GOOD_TRACES)
    bad = tmp_path / "in" / "bad.pkl"
    with bad.open("wb") as file:  # one bytes object, its zeros a hole in the file
        file.write(b"\x80\x04]\x8e" + size.to_bytes(8, "little"))
        file.seek(size, os.SEEK_CUR)
        file.write(b"a.")
    before = bad.stat()
    done = split(
        *("-i", tmp_path / "in", "-o", tmp_path / "out", "-n", 3),
        preexec_fn=limit(resource.RLIMIT_AS, size // 2),
    )
    assert done.returncode == 1
    (error,) = errors_of(done.stderr)
    assert "bad.pkl: no hay memoria suficiente para cargarlo entero" in error
    assert "Qué hacer: usa --low-memory" in error
    assert "Traceback" not in done.stderr
    assert names(tmp_path / "out") == GOOD_NAMES
    after = bad.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_no_memory_for_a_thread_is_told_as_that(tmp_path: Path) -> None:
    write_batch(tmp_path / "a.pkl", [1, 2])
    huge = 1 << 46  # bytes of stack for each new thread
    done = split(
        *("-i", tmp_path / "a.pkl", "-o", tmp_path / "out"),
        preexec_fn=limit(resource.RLIMIT_STACK, huge),
    )
    assert done.returncode == 1
    (error,) = errors_of(done.stderr)
    assert "no hay memoria suficiente" in error
    assert names(tmp_path / "out") == []


def test_too_little_memory_to_validate_is_not_told_as_a_bad_disk(tmp_path: Path) -> None:
    module = """
def rebuild(loads=[]):
    loads.append(1)
    if len(loads) > 1:
        raise MemoryError
    return Trace()

class Trace:
    def __reduce__(self):
        return rebuild, ()
"""
    env = write_module(tmp_path / "modules", "greedy", module)
    (tmp_path / "a.pkl").write_bytes(pickled_list(pickled_call("greedy", "rebuild")))
    done = split("-i", tmp_path / "a.pkl", "-o", tmp_path / "out", env=env)
    assert done.returncode == 1
    (error,) = errors_of(done.stderr)
    assert (
        "la validación falló: está bien escrito, pero no se carga: no hay memoria suficiente"
        in error
    )
    assert "Qué hacer: usa --low-memory" in error
    assert names(tmp_path / "out") == []


def test_too_little_memory_for_the_index_is_a_clear_error(tmp_path: Path) -> None:
    source = tmp_path / "a.pkl"
    source.write_bytes(b"](" + b"N" * (8 * 10**6) + b"e.")
    args = ("-i", source, "-o", tmp_path / "out", "--low-memory", "--jobs", 1)
    done = split(*args, preexec_fn=limit(resource.RLIMIT_AS, 160 * MIB))
    assert_fails(done, "no hay memoria suficiente")
    assert names(tmp_path / "out") == []
