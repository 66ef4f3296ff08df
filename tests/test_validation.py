"""Does validation find what it is there for, and is a split cancelled until the last moment?

The traces of these batches are of classes whose code does the damage, while they are saved, loaded
or freed: that is real code in a real run, and comes at the very moment that the test is about.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from faults import under_strace
from helpers import (
    LIMIT_SECONDS,
    load,
    names,
    pickled_call,
    pickled_list,
    split,
    write_batch,
    write_module,
)

from divide_conquer import Phase, ValidationError, split_file

pytestmark = pytest.mark.timeout(LIMIT_SECONDS)
modes = pytest.mark.parametrize("low_memory", [False, True], ids=["default", "low_memory"])

MODULE = """
import gc, os, signal


def make(what):
    trace = Trace()
    trace.what = what
    return trace


class Trace:
    def __reduce__(self):
        if self.what == "drop others when saved":
            for owner in gc.get_referrers(self):
                if type(owner) is list:
                    del owner[:-1]
        elif self.what == "drop the first when saved":
            for owner in gc.get_referrers(self):
                if type(owner) is list:
                    del owner[0]
        return make, (self.what,)


made = 0


class Farewell:
    def __init__(self):
        global made
        made += 1
        self.number = made

    def __del__(self):
        if self.number == 2:  # 1 was of the source, 2 of the sub-batch that is validated
            os.kill(os.getpid(), signal.SIGINT)

    def __reduce__(self):
        return Farewell, ()
"""


def run(tmp_path: Path, items: list[bytes], n: int, *more: object) -> Any:
    source = tmp_path / "a.pkl"
    source.write_bytes(pickled_list(*items))
    env = write_module(tmp_path / "modules", "odd_traces", MODULE)
    return split("-i", source, "-o", tmp_path / "out", "-n", n, *more, env=env)


def trace(what: str) -> bytes:
    return pickled_call("odd_traces", "make", what)


NUMBERS = [b"K%c" % number for number in range(3)]


def test_sub_batch_with_another_number_of_traces_is_found(tmp_path: Path) -> None:
    """Its last trace takes the others out of the list once they are written."""
    done = run(tmp_path, [*NUMBERS, trace("drop others when saved")], 4)
    assert done.returncode == 1
    assert "a_sub0000.pkl.gz.part" in done.stderr
    assert "la validación falló: 4 traces en vez de 1" in done.stderr
    assert names(tmp_path / "out") == []
    assert (tmp_path / "a.pkl").exists()


def test_trace_that_no_sub_batch_has_is_found(tmp_path: Path) -> None:
    """The second trace takes out the first as it is saved, so that the third is passed over."""
    done = run(tmp_path, [b"K\x07", trace("drop the first when saved"), *NUMBERS], 9)
    assert done.returncode == 1
    assert "la validación falló: 4 traces en los sub-batches y 5 en el original" in done.stderr
    assert names(tmp_path / "out") == []
    assert (tmp_path / "a.pkl").exists()


@modes
def test_byte_that_changed_on_disk_is_found_although_it_loads(
    tmp_path: Path, low_memory: bool
) -> None:
    source, output = write_batch(tmp_path / "a.pkl", ["sound", 1, 2]), tmp_path / "out"

    def progress(phase: Phase, done: int, expected: int) -> None:
        part = output / "a_sub0000.pkl.part"
        if phase is Phase.VALIDATE and done == 0:
            assert b"sound" in part.read_bytes()
            part.write_bytes(part.read_bytes().replace(b"sound", b"sOund"))

    with pytest.raises(ValidationError, match="no devuelve los bytes que se escribieron"):
        split_file(
            source,
            output,
            traces_per_batch=2,
            compress=False,
            low_memory=low_memory,
            progress=progress,
        )
    assert names(output) == []
    assert load(source) == ["sound", 1, 2]


@modes
def test_progress_comes_one_at_a_time_and_adds_up(tmp_path: Path, low_memory: bool) -> None:
    traces = [os.urandom(300_000) for _ in range(12)]
    source, output = write_batch(tmp_path / "a.pkl", traces), tmp_path / "out"
    busy = threading.Lock()
    last: dict[Phase, tuple[int, int]] = {}

    def progress(phase: Phase, done: int, expected: int) -> None:
        assert busy.acquire(blocking=False), "two calls at once"
        time.sleep(0.0005)  # lets another thread come, if nothing holds it back
        assert done >= last.get(phase, (0, 0))[0]
        last[phase] = done, expected
        busy.release()

    report = split_file(
        source, output, traces_per_batch=1, low_memory=low_memory, jobs=4, progress=progress
    )
    assert last[Phase.LOAD] == (source.stat().st_size,) * 2
    assert last[Phase.VALIDATE] == (report.output_bytes,) * 2


def test_signal_after_the_last_byte_was_validated_cancels(tmp_path: Path) -> None:
    """It comes when the traces that were read back are freed: nothing is published yet."""
    done = run(tmp_path, [pickled_call("odd_traces", "Farewell")], 1, "--delete-original", "--yes")
    assert done.returncode == 130
    assert "Interrumpido al dividir a.pkl" in done.stderr
    assert names(tmp_path / "out") == []
    assert (tmp_path / "a.pkl").exists()


@pytest.mark.parametrize("mode", [(), ("--low-memory",)], ids=["default", "low_memory"])
def test_signal_during_the_last_fsync_cancels(tmp_path: Path, mode: tuple[str, ...]) -> None:
    source, output = write_batch(tmp_path / "a.pkl", [1, 2, 3]), tmp_path / "out"
    prefix = under_strace("fsync:signal=SIGINT", output / "a_sub0001.pkl.gz.part")
    done = split("-i", source, "-o", output, "-n", 2, "--no-validate", *mode, prefix=prefix)
    assert done.returncode == 130
    assert "Interrumpido al dividir a.pkl" in done.stderr
    assert names(output) == []
