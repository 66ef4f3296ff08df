"""Splitting: are the sub-batches the traces of the original, in their order, N to a file?"""

from __future__ import annotations

import gzip
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest
from helpers import Folders, Mode, load_set, modes, names, snapshot, split, sub_names, write_batch


def test_example_of_the_guide(folders: Folders) -> None:
    for number in (0, 1):
        traces = [f"{number}:{i}" for i in range(1000)]
        write_batch(folders.source / f"batch_000{number}.pkl.gz", traces)
    before = snapshot(folders.source)
    done = split(*folders.args())
    assert (done.returncode, done.stderr) == (0, "")
    assert names(folders.output) == sub_names("batch_0000", 4) + sub_names("batch_0001", 4)
    for number in (0, 1):
        subs = load_set(folders.output, f"batch_000{number}")
        assert subs == [
            [f"{number}:{i}" for i in range(start, start + 250)] for start in (0, 250, 500, 750)
        ]
    assert snapshot(folders.source) == before


def test_single_file_into_nested_folder(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "in" / "a.pkl.gz", [1, 2, 3])
    write_batch(tmp_path / "in" / "b.pkl.gz", [4])
    output = tmp_path / "new" / "deeper"
    assert split("-i", source, "-o", output).returncode == 0
    assert names(output) == sub_names("a", 1)
    assert load_set(output, "a") == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("args", "sizes"),
    [
        pytest.param(["-n", 3], [3, 3, 1], id="n-that-does-not-divide"),
        pytest.param(["--traces-per-batch", 7], [7], id="n-equal-to-the-traces"),
        pytest.param(["-n", 100], [7], id="n-above-the-traces"),
        pytest.param(["-n", 1], [1] * 7, id="one-trace-each"),
        pytest.param(["--no-compress", "-n", 4], [4, 3], id="no-compress"),
    ],
)
def test_traces_per_batch(folders: Folders, args: list[object], sizes: list[int]) -> None:
    write_batch(folders.source / "a.pkl.gz", list(range(7)))
    assert split(*folders.args(*args)).returncode == 0
    suffix = ".pkl" if "--no-compress" in args else ".pkl.gz"
    assert names(folders.output) == sub_names("a", len(sizes), suffix)
    subs = load_set(folders.output, "a")
    assert [len(sub) for sub in subs] == sizes
    assert [trace for sub in subs for trace in sub] == list(range(7))


@modes
def test_content_decides_what_is_gzip(folders: Folders, mode: Mode) -> None:
    data = pickle.dumps([1, 2])
    contents = {
        "gzip-named-pkl.pkl": gzip.compress(data),
        "plain-named-gz.pkl.gz": data,
        "two-members.pkl.gz": gzip.compress(data[:9]) + gzip.compress(data[9:]),
        "zeros-at-the-end.pkl.gz": gzip.compress(data) + bytes(99),
    }
    for name, content in contents.items():
        (folders.source / name).write_bytes(content)
    done = split(*folders.args(*mode))
    assert (done.returncode, done.stderr) == (0, "")
    for name in contents:
        assert load_set(folders.output, name.split(".")[0]) == [[1, 2]]


def test_sub_batches_have_the_highest_protocol(folders: Folders) -> None:
    for protocol in range(5):
        write_batch(folders.source / f"p{protocol}.pkl", [1, 2, 3], protocol)
    assert split(*folders.args("-n", 2, "--no-compress")).returncode == 0
    assert len(names(folders.output)) == 10
    for path in folders.output.iterdir():
        opcode, version, _ = next(pickletools.genops(path.read_bytes()))
        assert (opcode.name, version) == ("PROTO", pickle.HIGHEST_PROTOCOL)


def test_trace_that_refers_to_the_whole_list_still_sees_it(folders: Folders) -> None:
    traces: list[Any] = [{"number": i} for i in range(5)]
    for trace in traces:
        trace["all"] = traces
    write_batch(folders.source / "a.pkl.gz", traces)
    assert split(*folders.args("-n", 2)).returncode == 0
    subs = load_set(folders.output, "a")
    assert [[trace["number"] for trace in sub] for sub in subs] == [[0, 1], [2, 3], [4]]
    for trace in (trace for sub in subs for trace in sub):
        assert [other["number"] for other in trace["all"]] == [0, 1, 2, 3, 4]
        assert trace["all"][trace["number"]] is trace


def test_trace_that_changes_the_working_folder_changes_no_path(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (tmp_path / "elsewhere").mkdir()
    write_batch(source / "b.pkl", [1, 2])
    path = str(tmp_path / "elsewhere").encode()
    call = b"cos\nchdir\n(X" + len(path).to_bytes(4, "little") + path + b"tR"
    (source / "a.pkl").write_bytes(b"\x80\x02](" + call + b"e.")
    done = split("-i", "in", "-o", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path / "out") == ["a_sub0000.pkl.gz", "b_sub0000.pkl.gz"]
    assert names(tmp_path / "elsewhere") == []
