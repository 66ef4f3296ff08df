"""Streams: do full, closed or broken ones, stdin too, leave the work unharmed?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from faults import N_PARTS, STEM, Box
from helpers import (
    Folders,
    Mode,
    load,
    load_set,
    modes,
    names,
    pickled_call,
    pickled_list,
    pickled_value,
    split,
    split_on_terminal,
    sub_names,
    write_batch,
    write_module,
)

HOW = {
    "default": (),
    "quiet": ("--quiet",),
    "low_memory": ("--low-memory",),
    "low_memory-quiet": ("--low-memory", "--quiet"),
}


@pytest.mark.parametrize("warned", [False, True], ids=["silent", "warned"])
@pytest.mark.parametrize("more", HOW.values(), ids=HOW)
@pytest.mark.parametrize(
    "redirection",
    [
        pytest.param(">/dev/full", id="stdout_full"),
        pytest.param("2>/dev/full", id="stderr_full"),
        pytest.param(">/dev/full 2>&1", id="both_full"),
        pytest.param(">&-", id="stdout_closed"),
        pytest.param("2>&-", id="stderr_closed"),
        pytest.param(">&- 2>&-", id="both_closed"),
        pytest.param("<&- >&- 2>&-", id="all_three_closed"),
    ],
)
@pytest.mark.sampled(12)
def test_output_that_goes_nowhere_does_not_stop_the_work(
    tmp_path: Path, redirection: str, more: Mode, warned: bool
) -> None:
    """warned: something is told on stderr, too, in the middle of the run."""
    box = Box(tmp_path / "box").make()
    kept = []
    if warned:
        target = write_batch(tmp_path / "elsewhere" / "a.pkl", [5])
        (box.source.parent / "a.pkl").symlink_to(target)
        kept = ["a.pkl"]
    shell = ("sh", "-c", f'exec "$@" {redirection}', "sh")
    done = split("-i", box.source.parent, *box.arguments(*more)[2:], prefix=shell)
    assert done.returncode == len(kept)
    assert "Exception ignored" not in done.stderr
    assert names(box.source.parent) == kept
    assert names(box.output) == sub_names("a", len(kept)) + sub_names(STEM, N_PARTS)
    assert load_set(box.output, STEM) == [box.traces[i : i + 2] for i in range(0, 6, 2)]


@pytest.mark.parametrize("fd", [1, 2])
def test_what_a_trace_prints_into_a_closed_stream_goes_nowhere(folders: Folders, fd: int) -> None:
    """And not into a file that was given the number of the stream."""
    call = pickled_call("posix", "write", fd, b"x")
    (folders.source / "a.pkl").write_bytes(pickled_list(call))
    shell = ("sh", "-c", f'exec "$@" {fd}>&-', "sh")
    assert split(*folders.args(), prefix=shell).returncode == 0
    assert load_set(folders.output, "a") == [[1]]


NAPPING = """
import time

class Nap:
    def __reduce__(self):
        return nap, ()

def nap():
    time.sleep(0.2)  # so that the bar is drawn again
    return Nap()
"""


def test_traces_that_close_the_streams_do_not_stop_a_run_with_a_bar(folders: Folders) -> None:
    env = write_module(folders.source.parent / "modules", "napping", NAPPING)
    texts = ["x" * 1_000_000] * 6
    calls = pickled_call("os", "closerange", 1, 3), pickled_call("napping", "nap")
    (folders.source / "a.pkl").write_bytes(pickled_list(*calls, *map(pickled_value, texts)))
    done = split_on_terminal(*folders.args("-n", 4, "--no-compress"), env=env)
    assert done.returncode == 0
    assert names(folders.output) == sub_names("a", 2, ".pkl")
    assert load(folders.output / "a_sub0001.pkl") == texts[2:]


@modes
@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")])
@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
def test_a_pipe_whose_reader_left_does_not_stop_the_work(
    tmp_path: Path, streams: Sequence[str], fails: bool, mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode).make()
    write_batch(box.source.with_name("a_bad.pkl"), {"not": "a list"} if fails else [1, 2])
    reader, writer = os.pipe()
    os.close(reader)
    options: dict[str, Any] = dict.fromkeys(streams, writer)
    done = split("-i", box.source.parent, *box.arguments()[2:], **options)
    os.close(writer)
    assert done.returncode == int(fails)
    assert "Exception ignored" not in (done.stderr or "")
    assert not box.source.exists()
    assert load_set(box.output, STEM) == [box.traces[i : i + 2] for i in range(0, 6, 2)]
    assert box.rest() == []
