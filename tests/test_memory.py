"""What is told of memory before a load, and what a dump holds of it."""

from __future__ import annotations

import pickle
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import pytest

from divide_conquer import _cgroup_memory_bytes, _dump_traces

MIB = 1 << 20


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


class TypedStorage:
    """Pickled as torch does it: by a call with a fresh copy of its bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def __reduce__(self) -> Any:
        return TypedStorage, (bytes(self.data),)


class OddStorage:
    def __reduce__(self) -> Any:
        return OddStorage, ()


class Sink:
    """Counts what is written."""

    def __init__(self) -> None:
        self.n_bytes = 0

    def write(self, data: Any) -> int:
        n_bytes = memoryview(data).nbytes
        self.n_bytes += n_bytes
        return n_bytes


class Joined:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: Any) -> int:
        self.data += bytes(memoryview(data))
        return memoryview(data).nbytes


@pytest.fixture
def torch_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring a stand-in for torch.storage, which is no dependency of the tests."""
    module = types.ModuleType("torch.storage")
    module.TypedStorage = TypedStorage  # type: ignore[attr-defined]
    module.UntypedStorage = OddStorage  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.storage", module)


def test_dump_keeps_no_copy_of_each_storage(torch_storage: None) -> None:
    traces = [TypedStorage(bytes(4 * MIB)) for _ in range(8)]
    sink = Sink()
    tracemalloc.start()
    _dump_traces(traces, sink, Path("a.pkl"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sink.n_bytes > 32 * MIB
    assert peak < 10 * MIB  # one copy, and the next


@pytest.mark.parametrize("n_bytes", [0, 5, 300, 70_000])
def test_storages_are_written_as_pickle_writes_them(torch_storage: None, n_bytes: int) -> None:
    one = TypedStorage(b"x" * n_bytes)
    traces = [one, {"again": one, "odd": OddStorage()}, TypedStorage(b"y" * n_bytes), b"z"]
    sink = Joined()
    _dump_traces(traces, sink, Path("a.pkl"))
    assert sink.data == pickle.dumps(traces, pickle.HIGHEST_PROTOCOL)
