"""split_file, called from Python: what may its callers rely on besides the files?"""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import LIMIT_SECONDS, load, low_memory_or_not, names, write_batch

from divide_conquer import (
    BLOCK_BYTES,
    LoadError,
    OutputError,
    Phase,
    SaveError,
    SplitError,
    SplitReport,
    ValidationError,
    split_file,
)

# Arguments, reports and errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"traces_per_batch": 0}, "traces_per_batch", id="n-0"),
        pytest.param({"traces_per_batch": -3}, "traces_per_batch", id="n-negative"),
        pytest.param({"traces_per_batch": 2.5}, "float", id="n-float"),
        pytest.param({"jobs": 0}, "jobs", id="jobs-0"),
        pytest.param({"jobs": 1.0}, "float", id="jobs-float"),
        pytest.param(
            {"delete_original": True, "validate": False}, "validate", id="delete-unvalidated"
        ),
    ],
)
def test_contradictory_arguments_raise_and_touch_nothing(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    source = write_batch(tmp_path / "a.pkl", [1, 2])
    with pytest.raises((ValueError, TypeError), match=expected):
        split_file(source, tmp_path / "out", **options)
    assert names(tmp_path) == ["a.pkl"]


def test_split_file_and_its_report_are_picklable(tmp_path: Path) -> None:
    call = pickle.loads(pickle.dumps(split_file))
    assert call is split_file
    report = call(write_batch(tmp_path / "a.pkl", [1, 2]), tmp_path / "out")
    assert pickle.loads(pickle.dumps(report)) == report


@pytest.mark.parametrize("class_", [SplitError, LoadError, OutputError, SaveError, ValidationError])
def test_errors_survive_pickling(class_: type[SplitError]) -> None:
    error = class_(Path("in/año.pkl"), "está vacío", "cópialo otra vez")
    error.leftovers = (Path("out/a_sub0000.pkl.gz"),)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is class_
    assert str(copy) == str(error) == "in/año.pkl: está vacío"
    assert (copy.path, copy.problem, copy.hint) == (error.path, error.problem, error.hint)
    assert copy.leftovers == error.leftovers


def test_failure_prints_nothing_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_batch(tmp_path / "a.pkl", "no list")
    with pytest.raises(LoadError, match="un objeto str") as caught:
        split_file(source, tmp_path / "out")
    assert (caught.value.path, caught.value.leftovers) == (source, ())
    assert names(tmp_path / "out") == []
    assert capfd.readouterr() == ("", "")


def test_split_file_needs_no_signals(tmp_path: Path) -> None:
    """A thread other than the main one may set no signal handlers."""
    source = write_batch(tmp_path / "a.pkl.gz", list(range(10)))
    reports: list[SplitReport] = []
    thread = threading.Thread(target=lambda: reports.append(split_file(source, tmp_path / "out")))
    thread.start()
    thread.join(LIMIT_SECONDS)
    assert [report.n_traces for report in reports] == [10]


# Progress


class CountedCancel:
    """A progress callback that raises at its k-th call: an OSError, if k is even."""

    def __init__(self, k: int) -> None:
        self.left = k
        self.error = (PermissionError, KeyboardInterrupt)[k % 2]
        self.phases: list[Phase] = []

    def __call__(self, phase: Phase, done_bytes: int, expected_bytes: int) -> None:
        self.left -= 1
        self.phases.append(phase)
        if self.left == 0:
            raise self.error


@low_memory_or_not
@pytest.mark.parametrize("compress", [True, False], ids=["gzip", "plain"])
def test_cancel_at_any_callback_leaves_nothing(
    tmp_path: Path, compress: bool, low_memory: bool
) -> None:
    traces = [bytes([i]) * 300_000 for i in range(5)]
    source, output = write_batch(tmp_path / "a.pkl.gz", traces), tmp_path / "out"
    before = source.read_bytes()
    cancelled_in: list[Phase] = []
    for k in range(1, 500):
        cancel = CountedCancel(k)
        try:
            split_file(
                source,
                output,
                traces_per_batch=2,
                compress=compress,
                low_memory=low_memory,
                progress=cancel,
            )
        except cancel.error:
            cancelled_in.append(cancel.phases[-1])
            assert names(output) == []
            assert source.read_bytes() == before
        else:
            break
    assert set(cancelled_in) == {Phase.LOAD, Phase.SAVE, Phase.VALIDATE}
    assert len(cancel.phases) == len(cancelled_in)
    assert [trace for path in sorted(output.iterdir()) for trace in load(path)] == traces


class Cancelled(BaseException):
    """As asyncio.CancelledError."""


@pytest.mark.parametrize("phase", [Phase.LOAD, Phase.SAVE, Phase.VALIDATE])
@pytest.mark.parametrize("error", [Cancelled, KeyboardInterrupt, ZeroDivisionError, OSError])
def test_what_the_progress_raises_comes_out_as_it_is(
    tmp_path: Path, phase: Phase, error: type[BaseException]
) -> None:
    """While blocks are queued, too: no thread is left, and nothing in the output folder."""
    write_batch(tmp_path / "a.pkl", [os.urandom(BLOCK_BYTES) for _ in range(8)])
    before = threading.active_count()

    def progress(now: Phase, done_bytes: int, expected_bytes: int) -> None:
        if now is phase and done_bytes > 2 * BLOCK_BYTES:
            raise error

    with pytest.raises(error) as raised:
        split_file(tmp_path / "a.pkl", tmp_path / "out", progress=progress, jobs=3)
    assert names(tmp_path / "out") == []
    assert threading.active_count() == before
    assert raised.type is error
